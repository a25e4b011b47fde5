"""model_fn -> pure step functions."""

import contextlib
import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .arrays import describe_array, is_key, named_leaves
from .axis import (
    bind_shard_axis,
    mean_over_shards,
    of_shard_0,
    same_on_all_shards,
    shard_index,
    sum_over_shards,
)
from .captures import captured_tracers
from .debugging import debugging, values_of_tracers
from .global_mean import with_parts_of_loss
from .init import init_on_one_shard, strong_arrays
from .model import Model
from .spec import ModeKeys, TPUEstimatorSpec, call_scaffold_fn, replaced
from .train_op import as_train_ops
from .trainable import merge, select
from .variables import checked_like

_logger = logging.getLogger("jaxspec")


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

    def init_opt_state(variables: Any, rng: Any, features: Any, labels: Any) -> Any:
        spec = model(ModeKeys.TRAIN, variables, features, labels, step=jnp.zeros((), jnp.int32), rng=rng)
        ops = as_train_ops(spec.train_op)
        if not model.takes_variables and any(op.loss is None and op.grads is None for op in ops):
            _logger.warning(
                "model_fn does not name `variables`, so its loss cannot depend on them, and nothing will be learnt. Write "
                "def model_fn(variables, features, ...) and use them: module.apply(variables, features)."
            )
        specs.append(shapes(leaving_device(spec)))
        states = tuple(op.optimizer.init(select(variables["params"], op.of)) for op in ops)
        return strong_arrays(states[0] if len(ops) == 1 else states)

    bound = bind_shard_axis(init_opt_state)
    if debugging():
        features, labels = jax.tree.map(jnp.asarray, (features, labels))
        opt_state = bound(variables, rng, features, labels)
        return TrainOpTrace(
            specs[-1], None, shapes(opt_state), lambda variables: bound(variables, rng, features, labels)
        )
    program = jax.jit(bound).trace(variables, rng, features, labels)

    def compute(variables: Any) -> Any:
        return program.lower().compile()(variables, rng, features, labels)

    return TrainOpTrace(specs[0], program.jaxpr, shapes(program.out_info), compute)


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


def leaving_device(spec: TPUEstimatorSpec) -> TPUEstimatorSpec:
    """The spec without the arrays that its mode does not send to the host.

    TRAIN keeps loss and host_call's tensors, EVAL also those of eval_metrics, PREDICT predictions alone. Of
    train_op only the static part stays.
    """
    train, evaluate = spec.mode == ModeKeys.TRAIN, spec.mode == ModeKeys.EVAL
    predict = spec.mode == ModeKeys.PREDICT
    # Not _replace, which checks: the rest of the spec was checked when the user made it.
    return TPUEstimatorSpec._make(
        (
            spec.mode,
            spec.predictions if predict else {},
            None if predict else spec.loss,
            jax.tree.map(lambda _: None, spec.train_op) if train else None,
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
    return bind_shard_axis(functools.partial(_eval_step, Model(model_fn, params)))


def make_predict_step(
    model_fn: Callable[..., Any], params: Mapping[str, Any] | None = None
) -> Callable[..., TPUEstimatorSpec]:
    """A pure function `(state, features, labels=None, batch=0) -> spec` in mode PREDICT.

    The spec holds this shard's `predictions`. Labels are ignored; `batch` is as in `make_eval_step`.
    """
    return bind_shard_axis(functools.partial(_predict_step, Model(model_fn, params)))


def train_step(model: Model) -> Callable[..., tuple[TrainState, TPUEstimatorSpec]]:
    """`make_train_step` of a Model."""
    return bind_shard_axis(functools.partial(_train_step, model))


def eval_step(model: Model) -> Callable[..., TPUEstimatorSpec]:
    """The step of `evaluate`, `(state, features, labels, place)`: its loss is taken apart (`with_parts_of_loss`).

    `place`, int32[2], is the number of the batch and the place of the first shard in it: of one, or of the rest of a
    short batch, which runs on its own.
    """
    return bind_shard_axis(functools.partial(_counted_eval_step, model))


def predict_step(model: Model) -> Callable[..., TPUEstimatorSpec]:
    """The step of `predict`, `(state, features, labels, place)`; labels are ignored, `place` is as in `eval_step`."""
    return bind_shard_axis(functools.partial(_counted_predict_step, model))


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
    return leaving_device(model(mode, state.variables, features, labels, step=state.step, rng=rng))


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
    rng = _shard_rng(state)

    def call(variables: Any) -> TPUEstimatorSpec:
        return model(ModeKeys.TRAIN, variables, features, labels, step=state.step, rng=rng)

    spec, loss, gradient = _differentiate_spec(call, state.variables)
    ops = as_train_ops(spec.train_op)
    variables = state.variables
    opt_states = (state.opt_state,) if len(ops) == 1 else state.opt_state
    if len(opt_states) != len(ops):
        raise ValueError(f"train_op has {len(ops)} TrainOps, but the state was made for {len(opt_states)}.")
    new_opt_states = []
    for number, (op, opt_state) in enumerate(zip(ops, opt_states, strict=True)):
        params = variables["params"]
        target = select(params, op.of)
        updates = op.updates
        if op.grads is not None:
            value, grads = loss, select(params, op.of, _embed(op.grads, op.of, params))
        elif op.loss is not None:
            value, grads, more = _differentiate_loss(op.loss, variables, target)
            updates = {**more, **(updates or {})}
        else:
            if number:  # the predecessor has changed the variables
                _, value, gradient = _differentiate_spec(call, variables)
            else:
                value = loss
            grads = select(params, op.of, gradient())
        transform = optax.with_extra_args_support(op.optimizer)
        changes, opt_state = transform.update(
            _reduce(grads, op.reduction), opt_state, target, value=mean_over_shards(value)
        )
        variables = {**variables, "params": merge(params, optax.apply_updates(target, changes))}
        if updates:
            variables = _write(variables, updates, "updates", reduce=True)
        if op.after is not None:
            reduce = not getattr(op.after, "same_on_all_shards", False)
            variables = _write(variables, op.after(variables), "after", reduce=reduce)
        new_opt_states.append(opt_state)
    opt_state = new_opt_states[0] if len(ops) == 1 else tuple(new_opt_states)
    new_state = TrainState(state.step + 1, variables, opt_state, state.rng)
    _check_same_types(state, new_state)
    return new_state, leaving_device(replaced(spec, loss=mean_over_shards(spec.loss)))


def _differentiate_spec(
    call: Callable[[Any], TPUEstimatorSpec], variables: Any
) -> tuple[TPUEstimatorSpec, Any, Callable[[], Any]]:
    """(spec, its loss, a function that gives the gradient of the loss, in the tree of params).

    Whether the gradient is wanted stands in the spec, so model_fn is run under differentiation at once: nearly
    always it is, and model_fn then runs once. The rest of this function is for the other cases.
    """
    params = variables["params"]
    trace: list[Any] = []

    def loss_of(selected: Any) -> tuple[Any, TPUEstimatorSpec]:
        trace.extend(getattr(leaf, "_trace", None) for leaf in jax.tree.leaves(selected)[:1])
        spec = call({**variables, "params": merge(params, selected)})
        return spec.loss, jax.tree.map(jnp.asarray, spec)

    try:
        with values_of_tracers() if debugging() else contextlib.nullcontext():
            loss, pullback, spec = jax.vjp(loss_of, select(params, None), has_aux=True)
    except Exception as error:
        # Either model_fn fails, and then fails again here, with a shorter traceback; or it cannot be differentiated.
        spec = call(variables)
        if any(op.loss is None and op.grads is None for op in as_train_ops(spec.train_op)):
            raise
        failure = error

        def refuse() -> Any:
            raise failure

        return spec, spec.loss, refuse
    ops = as_train_ops(spec.train_op)
    if any(
        getattr(tracer, "_trace", None) in trace
        for op in ops
        for part in (op.loss, op.after, op.optimizer)
        for _, tracer in captured_tracers(part)
    ):
        # A function of a TrainOp has captured something differentiated above, where it cannot be used any more.
        spec = call(variables)

    def gradient() -> Any:
        if not jnp.issubdtype(loss.dtype, jnp.floating):
            raise TypeError(f"loss must be floating to be minimized, got {describe_array(loss)}.")
        return merge(params, pullback(jnp.ones_like(loss))[0])

    return spec, loss, gradient


def _differentiate_loss(loss_fn: Callable[[Any], Any], variables: Any, target: Any) -> tuple[Any, Any, Any]:
    """(loss, gradient in the tree of `target`, updates) of a TrainOp's own loss."""

    def loss_of(target: Any) -> tuple[Any, Any]:
        out = loss_fn({**variables, "params": merge(variables["params"], target)})
        loss, updates = out if isinstance(out, tuple) else (out, {})
        if jnp.size(loss) != 1:
            raise ValueError(f"the loss of minimize must be scalar, got {describe_array(loss)}.")
        return jnp.reshape(loss, ()), dict(updates)

    with values_of_tracers() if debugging() else contextlib.nullcontext():
        loss, pullback, updates = jax.vjp(loss_of, target, has_aux=True)
    return loss, pullback(jnp.ones_like(loss))[0], updates


def _embed(grads: Any, of: Any, params: Any) -> Any:
    """Gradients of the keys `of` alone, in the tree of `params`; any other gradients as they are."""
    if isinstance(of, tuple) and isinstance(grads, Mapping) and set(grads) == set(of) and set(grads) != set(params):
        return {**params, **grads}
    return grads


def _reduce(grads: Any, reduction: str | None) -> Any:
    if reduction == "mean":
        return mean_over_shards(grads)
    if reduction == "sum":
        return sum_over_shards(grads)
    return of_shard_0(grads)


def _write(variables: dict[str, Any], new: Any, source: str, *, reduce: bool) -> dict[str, Any]:
    """`variables` with some collections replaced by `new` ones of the same structure."""
    if not isinstance(new, Mapping):
        raise TypeError(f"{source} must give a dict of collections such as {{'batch_stats': ...}}, got {new!r}.")
    for name in new:
        if name not in variables:
            raise ValueError(
                f"{source} writes the collection {name!r}, which init_fn never made; it made {sorted(variables)}. "
                "Let init_fn return it too."
            )
    old = {name: variables[name] for name in new}
    new = checked_like(old, dict(new), f"{source} does not fit the variables")
    return {**variables, **(same_on_all_shards(new) if reduce else new)}


def _check_same_types(old: TrainState, new: TrainState) -> None:
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
