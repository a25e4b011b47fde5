"""The pure steps of training, evaluation and prediction."""

import functools
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec._src.base.arrays import describe_array, named_leaves
from jaxspec._src.base.types import Array, Batch, HyperParameters, Variables
from jaxspec._src.spec.mode import Mode, ModeKeys
from jaxspec._src.spec.tpu_estimator_spec import ModelFn, TPUEstimatorSpec, replaced
from jaxspec._src.step.axis import bind_shard_axis, mean_over_shards, shard_index, varying
from jaxspec._src.step.global_mean import with_parts_of_loss
from jaxspec._src.step.model import Model, marked_if_whole, outputs_of
from jaxspec._src.step.state import TrainState
from jaxspec._src.step.update import apply_train_ops
from jaxspec._src.step.variables import strong_arrays

_FIRST = np.zeros(2, np.int32)
# No numbers of steps: training folds in its step alone, and a step is no larger than an int32.
_RNG_OF_MODE = {ModeKeys.EVAL: np.uint32(2**32 - 1), ModeKeys.PREDICT: np.uint32(2**32 - 2)}


class TrainStep(Protocol):
    """One update on one shard's batch."""

    def __call__(
        self, state: TrainState, features: Batch, labels: Batch = None
    ) -> tuple[TrainState, TPUEstimatorSpec]: ...


def make_train_step(model_fn: ModelFn, params: HyperParameters = None) -> TrainStep:
    """A pure function `(state, features, labels=None) -> (state, spec)` that makes one update.

    It may be jitted, scanned, vmapped, or mapped with `replicate`. The spec holds what leaves the device in TRAIN:
    `loss` (a scalar, averaged over shards) and host_call's tensors of this shard. Any other mapping must name its axis
    `SHARD_AXIS`, or its devices do not see each other.

    Args:
      model_fn: as in `TPUEstimator`.
      params: hyper-parameters.
    """
    return train_step(Model(model_fn, params))


def train_step(model: Model) -> TrainStep:
    """`make_train_step` of a Model."""

    @bind_shard_axis
    def bound(state: TrainState, features: Batch, labels: Batch) -> tuple[TrainState, TPUEstimatorSpec]:
        rng = varying(jax.random.fold_in(jax.random.fold_in(state.rng, state.step), shard_index()))

        def call(variables: Variables) -> TPUEstimatorSpec:
            return model(ModeKeys.TRAIN, variables, features, labels, step=state.step, rng=rng)

        variables, opt_state, spec = apply_train_ops(call, state.variables, state.opt_state)
        # The largest number stays, because a negative step would be worse.
        step = jnp.where(state.step == np.iinfo(state.step.dtype).max, state.step, state.step + 1)
        new_state = _checked(state, TrainState(step, variables, opt_state, state.rng))
        return new_state, replaced(spec, loss=mean_over_shards(spec.loss))

    def step(state: TrainState, features: Batch, labels: Batch = None) -> tuple[TrainState, TPUEstimatorSpec]:
        new_state, spec = bound(state, features, labels)
        return new_state, marked_if_whole(spec)

    return step


def _checked(old: TrainState, new: TrainState) -> TrainState:
    """`new`, whose leaves must have the shapes and dtypes of `old`; without weak types, which `old` cannot have."""
    before, after = named_leaves(old), named_leaves(new)
    if len({jax.tree.structure(state) for state in (old, new)}) > 1:
        different = sorted(set(before) ^ set(after)) or ["the tree's node types"]
        raise ValueError(f"the training step changes the structure of the state: {', '.join(different)} differ.")
    for name, was in before.items():
        now = after[name]
        if jnp.shape(was) != jnp.shape(now) or jnp.result_type(was) != jnp.result_type(now):
            raise ValueError(
                f"the training step changes {name} from {describe_array(was)} to {describe_array(now)}; an update "
                "must keep shape and dtype."
            )
    state: TrainState = strong_arrays(new)
    return state


class InferenceStep(Protocol):
    """Evaluation or prediction of one shard's batch."""

    def __call__(
        self, state: TrainState, features: Batch, labels: Batch = None, batch: Array | int = 0
    ) -> TPUEstimatorSpec: ...


class PlacedStep(Protocol):
    """Evaluation or prediction of one shard's batch, in a run.

    `place`, int32[2], is the number of the batch, and the index of the first shard of this call in it: the rows that are
    left over when a short batch is split run in a separate call.
    """

    def __call__(
        self, state: TrainState, features: Batch, labels: Batch = None, place: Array = ...
    ) -> TPUEstimatorSpec: ...


def make_eval_step(model_fn: ModelFn, params: HyperParameters = None) -> InferenceStep:
    """A pure function `(state, features, labels=None, batch=0) -> spec` in mode EVAL.

    The spec holds `loss` (a scalar, averaged over shards) and the tensors of eval_metrics and host_call of this shard.

    `batch` is the number of the batch, an int32 scalar that is folded into `rng`: if model_fn uses `rng`, count the
    batches, or every batch gets the same random numbers. (With `replicate`: `numpy.full(num_shards, number)`.)

    Args:
      model_fn: as in `TPUEstimator`.
      params: hyper-parameters.
    """
    return _inference_step(ModeKeys.EVAL, Model(model_fn, params))


def make_predict_step(model_fn: ModelFn, params: HyperParameters = None) -> InferenceStep:
    """A pure function `(state, features, labels=None, batch=0) -> spec` in mode PREDICT.

    The spec holds this shard's `predictions`. Labels are ignored; the arguments are those of `make_eval_step`.
    """
    return _inference_step(ModeKeys.PREDICT, Model(model_fn, params))


def _inference_step(mode: Mode, model: Model) -> InferenceStep:
    """`make_eval_step` or `make_predict_step` of a Model."""

    @bind_shard_axis
    def bound(state: TrainState, features: Batch, labels: Batch, batch: Array | int) -> TPUEstimatorSpec:
        spec = _infer(mode, model, state, features, labels, batch, shard_index())
        return spec if mode == ModeKeys.PREDICT else replaced(spec, loss=mean_over_shards(spec.loss))

    def step(state: TrainState, features: Batch, labels: Batch = None, batch: Array | int = 0) -> TPUEstimatorSpec:
        return marked_if_whole(bound(state, features, None if mode == ModeKeys.PREDICT else labels, batch))

    return step


def placed_step(mode: Mode, model: Model) -> PlacedStep:
    """The step of `evaluate` or `predict`. In EVAL its loss is split into parts, see `with_parts_of_loss`."""

    @bind_shard_axis
    def step(state: TrainState, features: Batch, labels: Batch = None, place: Array = _FIRST) -> TPUEstimatorSpec:
        infer = functools.partial(_infer, mode, model, state, features, labels, place[0], place[1] + shard_index())
        return with_parts_of_loss(infer) if mode == ModeKeys.EVAL else infer()

    return step


def _infer(
    mode: Mode, model: Model, state: TrainState, features: Batch, labels: Batch, *place: Array | int
) -> TPUEstimatorSpec:
    """`place` is (number of the batch, index of the shard in it)."""
    rng = state.rng
    for number in (_RNG_OF_MODE[mode], state.step, *place):
        rng = jax.random.fold_in(rng, number)
    variables = varying(state.variables)
    spec = model(mode, variables, features, labels, step=state.step, rng=rng, opt_state=state.opt_state)
    return outputs_of(spec)
