"""TrainState, and how a fresh one is made."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp

from jaxspec._src.base.arrays import is_key
from jaxspec._src.spec.scaffold import call_scaffold_fn
from jaxspec._src.spec.tpu_estimator_spec import TPUEstimatorSpec
from jaxspec._src.step.init import init_on_one_shard
from jaxspec._src.step.model import Model
from jaxspec._src.step.tracing import TrainOpTrace, trace_train_op
from jaxspec._src.step.variables import checked_like


class TrainState(NamedTuple):
    """Everything that training carries from step to step. A pytree without a device axis."""

    step: Any
    """int32 scalar: the number of updates made."""
    variables: Any
    """Collections: `{"params": ..., ...}`."""
    opt_state: Any
    """The optimizer's state; a tuple of them where `train_op` is a sequence. None where nothing is trained."""
    rng: Any
    """Typed key; never changes. A step folds its number and its shard into it."""


def create_train_state(
    model_fn: Callable[..., Any],
    init_fn: Any,
    rng: jax.Array,
    features: Any,
    labels: Any = None,
    params: Mapping[str, Any] | None = None,
) -> TrainState:
    """A fresh state at step 0, in the order: variables, `Scaffold.init_fn`, optimizer state.

    Args:
      model_fn: as in `TPUEstimator`.
      init_fn: a function of `rng`, `features`, `labels`, `params` (those it names), or a Flax Linen Module.
      rng: a key.
      features, labels: one per-shard batch; only shapes and dtypes matter, unless init_fn uses the values.
      params: hyper-parameters.

    Returns:
      The state, on the default device; its leaves share no buffers, so it may be donated.
    """
    model = Model(model_fn, params)
    init_rng, step_rng = split_rng(rng)
    variables = jax.jit(init_on_one_shard(init_fn, model.params_for))(init_rng, features, labels)
    trace = trace_train_op(model, variables, step_rng, features, labels)
    return finish_train_state(trace, variables, step_rng)


def split_rng(rng: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(the key for init_fn, the key that the state carries)."""
    if not is_key(rng):
        rng = jax.random.wrap_key_data(rng)
    init_rng, step_rng = jax.random.split(rng)
    return init_rng, step_rng


def finish_train_state(trace: TrainOpTrace, variables: Any, rng: jax.Array) -> TrainState:
    """The state at step 0 from fresh variables: `Scaffold.init_fn`, then the optimizer state."""
    variables = scaffold_variables(trace.spec, variables)
    state: TrainState = unshared(TrainState(jnp.zeros((), jnp.int32), variables, trace.init_opt_state(variables), rng))
    return state


def scaffold_variables(spec: TPUEstimatorSpec, variables: Any) -> Any:
    """The variables after the spec's `Scaffold.init_fn`, which must keep their structure, shapes and dtypes."""
    init_fn = None if spec.scaffold_fn is None else call_scaffold_fn(spec.scaffold_fn).init_fn
    if init_fn is None:
        return variables
    try:
        replaced = init_fn(variables)
    except BaseException as error:
        error.add_note("raised by Scaffold.init_fn")
        raise
    what = "Scaffold.init_fn returned variables that differ from init_fn's"
    return checked_like(variables, replaced, what, same_dtypes=True)


def unshared(tree: Any) -> Any:
    """Copies leaves that share a buffer with an earlier leaf: donating one buffer twice ends the process."""
    seen: set[int] = set()

    def one(x: Any) -> Any:
        buffers = {shard.data.unsafe_buffer_pointer() for shard in _buffer_array(x).addressable_shards}
        if buffers & seen:
            x = jnp.copy(x)
            buffers = {shard.data.unsafe_buffer_pointer() for shard in _buffer_array(x).addressable_shards}
        seen.update(buffers)
        return x

    return jax.tree.map(one, tree)


def _buffer_array(x: jax.Array) -> jax.Array:
    return jax.random.key_data(x) if is_key(x) else x
