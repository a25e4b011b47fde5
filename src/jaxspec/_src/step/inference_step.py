"""The pure steps of evaluation and prediction."""

import functools
from collections.abc import Callable
from typing import Protocol

import jax
import numpy as np

from jaxspec._src.base.types import Array, Batch, HyperParameters
from jaxspec._src.spec.mode import Mode, ModeKeys
from jaxspec._src.spec.tpu_estimator_spec import ModelFn, TPUEstimatorSpec, replaced
from jaxspec._src.step.axis import bind_shard_axis, mean_over_shards, shard_index, varying
from jaxspec._src.step.global_mean import with_parts_of_loss
from jaxspec._src.step.model import Model, marked_if_whole, outputs_of
from jaxspec._src.step.state import TrainState

_FIRST = np.zeros(2, np.int32)


# No numbers of steps: training folds in its step alone, and a step is no larger than an int32.
_RNG_OF_MODE = {ModeKeys.EVAL: np.uint32(2**32 - 1), ModeKeys.PREDICT: np.uint32(2**32 - 2)}


class InferenceStep(Protocol):
    """Evaluation or prediction of one shard's batch."""

    def __call__(
        self, state: TrainState, features: Batch, labels: Batch = None, batch: Array | int = 0
    ) -> TPUEstimatorSpec: ...


class PlacedStep(Protocol):
    """Evaluation or prediction of one shard's batch, in a run.

    `place`, int32[2], is the number of the batch, and the index of the first shard of this call in it: the rows that
    are left over when a short batch is split run in a separate call.
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


def make_export_step(model: Model) -> Callable[[TrainState, Batch], dict[str, dict[str, Array]]]:
    """What an export computes: `(state, features) -> outputs by signature`, of one shard's batch.

    Its random numbers are those of the first shard of the first batch in `predict`.
    """

    @bind_shard_axis
    def step(state: TrainState, features: Batch) -> dict[str, dict[str, Array]]:
        spec = _spec(ModeKeys.PREDICT, model, state, features, None, *_FIRST)
        return {name: dict(output.outputs) for name, output in (spec.export_outputs or {}).items()}

    return step


def _infer(
    mode: Mode, model: Model, state: TrainState, features: Batch, labels: Batch, *place: Array | int
) -> TPUEstimatorSpec:
    return outputs_of(_spec(mode, model, state, features, labels, *place))


def _spec(
    mode: Mode, model: Model, state: TrainState, features: Batch, labels: Batch, *place: Array | int
) -> TPUEstimatorSpec:
    """`place` is (number of the batch, index of the shard in it)."""
    rng = state.rng
    for number in (_RNG_OF_MODE[mode], state.step, *place):
        rng = jax.random.fold_in(rng, number)
    variables = varying(state.variables)
    return model(mode, variables, features, labels, step=state.step, rng=rng, opt_state=state.opt_state)
