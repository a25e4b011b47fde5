"""model_fn -> pure step functions."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax

from jaxspec._src.base.arrays import describe_array, is_key, named_leaves
from jaxspec._src.spec.spec import ModeKeys, TPUEstimatorSpec, WholeBatchSpec, call_scaffold_fn, replaced
from jaxspec._src.spec.train_op import TrainOp, as_train_ops
from jaxspec._src.step.axis import bind_shard_axis, mean_over_shards, shard_axis_is_bound, shard_index, varying
from jaxspec._src.step.debugging import debugging
from jaxspec._src.step.dependence import Dependence
from jaxspec._src.step.global_mean import with_parts_of_loss
from jaxspec._src.step.init import init_on_one_shard, strong_arrays
from jaxspec._src.step.lifting import needed_part
from jaxspec._src.step.model import Model
from jaxspec._src.step.stale import warn_of_losses_without_gradient, warn_of_stale_collections
from jaxspec._src.step.trainable import select
from jaxspec._src.step.update import apply_train_ops, losses_and_collections
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


class TrainOpTrace(NamedTuple):
    """What one abstract run of model_fn in TRAIN tells."""

    spec: TPUEstimatorSpec
    """The spec as it leaves the device; its leaves are the `jax.ShapeDtypeStruct` of one shard."""
    jaxpr: Any
    """What model_fn computes; None if it was not traced."""
    opt_state: Any
    """Shapes and dtypes of the optimizer state."""
    init_opt_state: Callable[[Any], Any]
    """Computes the optimizer state from variables."""


def trace_train_op(model: Model, variables: Any, rng: jax.Array, features: Any, labels: Any) -> TrainOpTrace:
    """Traces model_fn once in TRAIN. Optimizers are made inside model_fn, so their state is made there too.

    Under `jax.disable_jit()` nothing is traced, and `variables` must be arrays.
    """
    specs: list[TPUEstimatorSpec] = []
    written: set[str] = set()
    trained: list[Any] = []

    def init_opt_state(variables: Any, rng: Any, features: Any, labels: Any) -> tuple[Any, Any, Any]:
        def call(variables: Any) -> TPUEstimatorSpec:
            return model(ModeKeys.TRAIN, variables, features, labels, step=jnp.zeros((), jnp.int32), rng=rng)

        spec = call(variables)
        ops = as_train_ops(spec.train_op)
        specs.append(shapes(leaving_device(spec)))
        states = tuple(op.optimizer.init(select(variables["params"], op.of)) for op in ops)
        opt_state = strong_arrays(states[0] if len(ops) == 1 else states)
        if debugging():
            return opt_state, None, None
        losses, collections = losses_and_collections(ops, spec.loss, variables)
        trained.extend(op.of for op in ops)
        written.update(name for new in collections for name in new)
        return opt_state, losses, (jax.tree.leaves(spec), collections)

    bound = bind_shard_axis(init_opt_state)
    if debugging():
        features, labels = jax.tree.map(jnp.asarray, (features, labels))
        opt_state, _, _ = bound(variables, rng, features, labels)
        return TrainOpTrace(
            specs[-1], None, shapes(opt_state), lambda variables: bound(variables, rng, features, labels)[0]
        )
    arguments = (variables, rng, features, labels)
    program = jax.jit(bound).trace(*arguments)
    opt_state = shapes(program.out_info[0])
    params = variables["params"]
    values = Dependence(program.jaxpr.jaxpr)
    numbers = jax.tree.unflatten(jax.tree.structure(arguments), values.inputs)[0]
    losses = jax.tree.unflatten(jax.tree.structure(program.out_info), values.outputs)[1]
    targets = [jax.tree.leaves(select(params, of, numbers["params"])) for of in trained]
    warn_of_losses_without_gradient(values, losses, targets, takes_variables=model.takes_variables)
    warn_of_stale_collections(values, variables, numbers, written)

    def compute(variables: Any) -> Any:
        # Only what the optimizer needs: the callbacks of model_fn belong to steps.
        treedef: Any
        leaves, treedef = jax.tree.flatten(opt_state)
        closed = jax.extend.core.ClosedJaxpr(needed_part(program.jaxpr.jaxpr, len(leaves)), program.jaxpr.consts)
        flat = jax.jit(jax.extend.core.jaxpr_as_fun(closed))(*jax.tree.leaves((variables, rng, features, labels)))
        return treedef.unflatten(flat)

    return TrainOpTrace(specs[0], program.jaxpr, opt_state, compute)


def finish_train_state(trace: TrainOpTrace, variables: Any, rng: jax.Array) -> TrainState:
    """The state at step 0 from fresh variables: `Scaffold.init_fn`, then the optimizer state."""
    variables = scaffold_variables(trace.spec, variables)
    state: TrainState = unshared(TrainState(jnp.zeros((), jnp.int32), variables, trace.init_opt_state(variables), rng))
    return state


def trace_spec(
    step: Callable[..., TPUEstimatorSpec], state: TrainState, features: Any, labels: Any
) -> tuple[TPUEstimatorSpec, Any]:
    """(the spec that an eval or predict step returns, with `jax.ShapeDtypeStruct` leaves; the step's jaxpr).

    Under `jax.disable_jit()` the step is run, and there is no jaxpr.
    """
    if debugging():
        return shapes(step(state, *jax.tree.map(jnp.asarray, (features, labels)))), None
    program = jax.jit(step).trace(state, features, labels)
    return shapes(program.out_info), program.jaxpr


def shapes(tree: Any) -> Any:
    """The shapes and dtypes of the leaves."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jax.dtypes.result_type(x)), tree)


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


_APPLIED = TrainOp(optax.identity(), None, None, (), "mean", None, None)


def leaving_device(spec: TPUEstimatorSpec) -> TPUEstimatorSpec:
    """The spec without the arrays that its mode does not send to the host.

    TRAIN keeps loss and host_call's tensors, EVAL also those of eval_metrics, PREDICT predictions alone. train_op
    has been applied: what stands in its place holds nothing of the trace.
    """
    train, evaluate = spec.mode == ModeKeys.TRAIN, spec.mode == ModeKeys.EVAL
    predict = spec.mode == ModeKeys.PREDICT
    # Not _replace, which checks: the rest of the spec was checked when the user made it.
    return TPUEstimatorSpec._make(
        (
            spec.mode,
            spec.predictions if predict else {},
            None if predict else spec.loss,
            _APPLIED if train else None,
            spec.eval_metrics if evaluate else None,
            None,
            spec.scaffold_fn,
            None if predict else spec.host_call,
            spec.training_hooks,
            spec.evaluation_hooks,
            spec.prediction_hooks,
        )
    )


def make_train_step(
    model_fn: Callable[..., Any], params: Mapping[str, Any] | None = None
) -> Callable[..., tuple[TrainState, TPUEstimatorSpec]]:
    """A pure function `(state, features, labels=None) -> (state, spec)` that makes one update.

    It may be jitted, scanned, vmapped, or mapped with `replicate`. The spec holds what leaves the device in TRAIN:
    `loss` (a scalar, averaged over shards) and host_call's tensors of this shard. A mapping of your own must name
    its axis `SHARD_AXIS`, or its devices do not see each other.
    """
    return train_step(Model(model_fn, params))


def make_eval_step(
    model_fn: Callable[..., Any], params: Mapping[str, Any] | None = None
) -> Callable[..., TPUEstimatorSpec]:
    """A pure function `(state, features, labels=None, batch=0) -> spec` in mode EVAL.

    The spec holds `loss` (averaged over shards) and the tensors of eval_metrics and host_call of this shard. `batch` is
    the number of the batch, an int32 scalar that is folded into `rng`: count the batches, if model_fn uses `rng`, or
    every batch gets the same random numbers. (With `replicate`: `numpy.full(num_shards, number)`.)
    """
    return _told_if_whole(functools.partial(_eval_step, Model(model_fn, params)))


def make_predict_step(
    model_fn: Callable[..., Any], params: Mapping[str, Any] | None = None
) -> Callable[..., TPUEstimatorSpec]:
    """A pure function `(state, features, labels=None, batch=0) -> spec` in mode PREDICT.

    The spec holds this shard's `predictions`. Labels are ignored; `batch` is as in `make_eval_step`.
    """
    return _told_if_whole(functools.partial(_predict_step, Model(model_fn, params)))


def train_step(model: Model) -> Callable[..., tuple[TrainState, TPUEstimatorSpec]]:
    """`make_train_step` of a Model."""
    step = bind_shard_axis(functools.partial(_train_step, model))

    def train(state: TrainState, features: Any, labels: Any = None) -> tuple[TrainState, TPUEstimatorSpec]:
        new_state, spec = step(state, features, labels)
        return new_state, spec if shard_axis_is_bound() else WholeBatchSpec._make(spec)

    return train


def eval_step(model: Model) -> Callable[..., TPUEstimatorSpec]:
    """The step of `evaluate`, `(state, features, labels, place)`: its loss is taken apart (`with_parts_of_loss`).

    `place`, int32[2], is the number of the batch and the place of the first shard in it: of one, or of the rest of a
    short batch, which runs on its own.
    """
    return bind_shard_axis(functools.partial(_counted_eval_step, model))


def predict_step(model: Model) -> Callable[..., TPUEstimatorSpec]:
    """The step of `predict`, `(state, features, labels, place)`; labels are ignored, `place` is as in `eval_step`."""
    return bind_shard_axis(functools.partial(_counted_predict_step, model))


def _told_if_whole(step: Callable[..., TPUEstimatorSpec]) -> Callable[..., TPUEstimatorSpec]:
    """The step, which gives a `WholeBatchSpec` where no mapping of the caller has split the batch."""
    bound = bind_shard_axis(step)

    def told(*args: Any, **kwargs: Any) -> TPUEstimatorSpec:
        spec: TPUEstimatorSpec = bound(*args, **kwargs)
        return spec if shard_axis_is_bound() else WholeBatchSpec._make(spec)

    return told


def _shard_rng(state: TrainState) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(state.rng, state.step), shard_index())


# No step: those of training are folded in alone, and are no larger than an int32.
_RNG_OF_MODE = {ModeKeys.EVAL: np.uint32(2**32 - 1), ModeKeys.PREDICT: np.uint32(2**32 - 2)}


def _inference_rng(mode: str, state: TrainState, batch: Any, shard: Any) -> jax.Array:
    rng: jax.Array = state.rng
    for number in (_RNG_OF_MODE[mode], state.step, batch, shard):
        rng = jax.random.fold_in(rng, number)
    return rng


def _infer(
    mode: str, model: Model, state: TrainState, features: Any, labels: Any, batch: Any, shard: Any
) -> TPUEstimatorSpec:
    rng = _inference_rng(mode, state, batch, shard)
    variables = varying(state.variables)
    spec = model(mode, variables, features, labels, step=state.step, rng=rng, opt_state=state.opt_state)
    return leaving_device(spec)


def _eval_step(model: Model, state: TrainState, features: Any, labels: Any = None, batch: Any = 0) -> TPUEstimatorSpec:
    spec = _infer(ModeKeys.EVAL, model, state, features, labels, batch, shard_index())
    return replaced(spec, loss=mean_over_shards(spec.loss))


def _predict_step(
    model: Model, state: TrainState, features: Any, labels: Any = None, batch: Any = 0
) -> TPUEstimatorSpec:
    return _infer(ModeKeys.PREDICT, model, state, features, None, batch, shard_index())


_FIRST = np.zeros(2, np.int32)


def _counted_eval_step(
    model: Model, state: TrainState, features: Any, labels: Any = None, place: Any = _FIRST
) -> TPUEstimatorSpec:
    batch, shard = place[0], place[1] + shard_index()
    return with_parts_of_loss(lambda: _infer(ModeKeys.EVAL, model, state, features, labels, batch, shard))


def _counted_predict_step(
    model: Model, state: TrainState, features: Any, labels: Any = None, place: Any = _FIRST
) -> TPUEstimatorSpec:
    return _infer(ModeKeys.PREDICT, model, state, features, None, place[0], place[1] + shard_index())


def _train_step(
    model: Model, state: TrainState, features: Any, labels: Any = None
) -> tuple[TrainState, TPUEstimatorSpec]:
    rng = varying(_shard_rng(state))

    def call(variables: Any) -> TPUEstimatorSpec:
        return model(ModeKeys.TRAIN, variables, features, labels, step=state.step, rng=rng)

    variables, opt_state, spec = apply_train_ops(call, leaving_device, state.variables, state.opt_state)
    new_state = _check_same_types(state, TrainState(next_step(state.step), variables, opt_state, state.rng))
    return new_state, replaced(spec, loss=mean_over_shards(spec.loss))


def next_step(step: Any) -> Any:
    """The number of the step after `step`. It stands still at the top of its type: a negative step would be worse."""
    return jnp.where(step == np.iinfo(step.dtype).max, step, step + 1)


def _check_same_types(old: TrainState, new: TrainState) -> TrainState:
    """`new`, whose leaves must have the shapes and dtypes of `old`; without weak types, which `old` cannot have."""
    structures: list[Any] = [jax.tree.structure(old), jax.tree.structure(new)]
    if structures[0] != structures[1]:
        was, now = named_leaves(old), named_leaves(new)
        different = sorted(set(was) ^ set(now)) or ["the tree's node types"]
        raise ValueError(f"the training step changes the structure of the state: {', '.join(different)} differ.")
    after = named_leaves(new)
    for name, was in named_leaves(old).items():
        now = after[name]
        if jnp.shape(was) != jnp.shape(now) or jnp.result_type(was) != jnp.result_type(now):
            raise ValueError(
                f"the training step changes {name} from {describe_array(was)} to {describe_array(now)}; an update "
                "must keep shape and dtype."
            )
    state: TrainState = strong_arrays(new)
    return state
