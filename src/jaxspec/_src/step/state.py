"""TrainState, and how a fresh one is made."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxspec._src.base.arrays import is_key
from jaxspec._src.base.types import Batch, HyperParameters, InitFn, PyTree, Variables
from jaxspec._src.spec.scaffold import call_scaffold_fn
from jaxspec._src.spec.tpu_estimator_spec import ModelFn, TPUEstimatorSpec
from jaxspec._src.step.init import init_on_one_shard
from jaxspec._src.step.model import Model
from jaxspec._src.step.tracing import TrainOpTrace, trace_train_op
from jaxspec._src.step.variables import checked_like


class TrainState(NamedTuple):
    """Everything that training carries from step to step. A pytree without a device axis."""

    step: jax.Array
    """int32 scalar: the number of updates made."""
    variables: Variables
    """Collections: `{"params": ..., ...}`."""
    opt_state: PyTree
    """The optimizer's state; a tuple of them where `train_op` is a sequence. None where nothing is trained."""
    rng: jax.Array
    """Typed key; never changes. A step folds its number and its shard into it."""


def create_train_state(
    model_fn: ModelFn,
    init_fn: InitFn,
    rng: jax.Array,
    features: Batch,
    labels: Batch = None,
    params: HyperParameters = None,
) -> TrainState:
    """A fresh state at step 0, in the order: variables, `Scaffold.init_fn`, optimizer state.

    Args:
      model_fn: as in `TPUEstimator`.
      init_fn: a function of `rng`, `features`, `labels`, `params` (those it names), or a Flax Linen Module.
      rng: a key.
      features, labels: one per-shard batch; only shapes and dtypes matter, unless init_fn uses the values.
      params: hyper-parameters.

    Returns:
      The state, on the default device. Its leaves share no buffers, so it may be donated.
    """
    model = Model(model_fn, params)
    init_rng, step_rng = split_rng(rng)
    variables = jax.jit(init_on_one_shard(init_fn, model.params_for))(init_rng, features, labels)
    trace = trace_train_op(model, variables, step_rng, features, labels)
    state: TrainState = _copied(finish_train_state(trace, variables, step_rng))
    return state


@jax.jit
def _copied(state: TrainState) -> TrainState:
    """A copy of the state whose leaves share no buffers: each is an output of a program, which has a buffer of its own.

    One array may be several leaves, and an optimizer may keep the parameters themselves. Donating a buffer twice ends the
    process.
    """
    copy: TrainState = jax.tree.map(jnp.copy, state)
    return copy


def split_rng(rng: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(the key for init_fn, the key that the state carries)."""
    if not is_key(rng):
        rng = jax.random.wrap_key_data(rng)
    init_rng, step_rng = jax.random.split(rng)
    return init_rng, step_rng


def finish_train_state(trace: TrainOpTrace, variables: Variables, rng: jax.Array) -> TrainState:
    """The state at step 0 from fresh variables. Its leaves may share buffers: copy them before they are donated."""
    variables = scaffold_variables(trace.spec, variables)
    return TrainState(jnp.zeros((), jnp.int32), variables, trace.init_opt_state(variables), rng)


def scaffold_variables(spec: TPUEstimatorSpec, variables: Variables) -> Variables:
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
    checked: Variables = checked_like(variables, replaced, what, same_dtypes=True)
    return checked
