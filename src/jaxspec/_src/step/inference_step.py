"""The pure steps of evaluation and prediction."""

from typing import Protocol

import jax
import numpy as np

from jaxspec._src.base.types import Array, Batch, HyperParameters
from jaxspec._src.spec.mode import Mode, ModeKeys
from jaxspec._src.spec.tpu_estimator_spec import ModelFn, TPUEstimatorSpec, replaced
from jaxspec._src.step.axis import bind_shard_axis, mean_over_shards, shard_index
from jaxspec._src.step.loss_parts import with_parts_of_loss
from jaxspec._src.step.model import Model
from jaxspec._src.step.outputs import marked_if_whole, outputs_of
from jaxspec._src.step.replication import varying
from jaxspec._src.step.state import TrainState


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
    model = Model(model_fn, params)

    @bind_shard_axis
    def step(state: TrainState, features: Batch, labels: Batch, batch: Array | int) -> TPUEstimatorSpec:
        spec = _infer(ModeKeys.EVAL, model, state, features, labels, batch, shard_index())
        return replaced(spec, loss=mean_over_shards(spec.loss))

    def marked(state: TrainState, features: Batch, labels: Batch = None, batch: Array | int = 0) -> TPUEstimatorSpec:
        return marked_if_whole(step(state, features, labels, batch))

    return marked


def make_predict_step(model_fn: ModelFn, params: HyperParameters = None) -> InferenceStep:
    """A pure function `(state, features, labels=None, batch=0) -> spec` in mode PREDICT.

    The spec holds this shard's `predictions`. Labels are ignored; the arguments are those of `make_eval_step`.
    """
    model = Model(model_fn, params)

    @bind_shard_axis
    def step(state: TrainState, features: Batch, batch: Array | int) -> TPUEstimatorSpec:
        return _infer(ModeKeys.PREDICT, model, state, features, None, batch, shard_index())

    def marked(state: TrainState, features: Batch, labels: Batch = None, batch: Array | int = 0) -> TPUEstimatorSpec:
        return marked_if_whole(step(state, features, batch))

    return marked


_FIRST = np.zeros(2, np.int32)


def eval_step(model: Model) -> PlacedStep:
    """The step of `evaluate`. Its loss is split into parts, see `with_parts_of_loss`."""

    @bind_shard_axis
    def step(state: TrainState, features: Batch, labels: Batch = None, place: Array = _FIRST) -> TPUEstimatorSpec:
        batch, shard = place[0], place[1] + shard_index()
        return with_parts_of_loss(lambda: _infer(ModeKeys.EVAL, model, state, features, labels, batch, shard))

    return step


def predict_step(model: Model) -> PlacedStep:
    """The step of `predict`. Labels are ignored."""

    @bind_shard_axis
    def step(state: TrainState, features: Batch, labels: Batch = None, place: Array = _FIRST) -> TPUEstimatorSpec:
        return _infer(ModeKeys.PREDICT, model, state, features, None, place[0], place[1] + shard_index())

    return step


# No numbers of steps: training folds in its step alone, and a step is no larger than an int32.
_RNG_OF_MODE = {ModeKeys.EVAL: np.uint32(2**32 - 1), ModeKeys.PREDICT: np.uint32(2**32 - 2)}


def _infer(
    mode: Mode,
    model: Model,
    state: TrainState,
    features: Batch,
    labels: Batch,
    batch: Array | int,
    shard: Array | int,
) -> TPUEstimatorSpec:
    rng = state.rng
    for number in (_RNG_OF_MODE[mode], state.step, batch, shard):
        rng = jax.random.fold_in(rng, number)
    variables = varying(state.variables)
    spec = model(mode, variables, features, labels, step=state.step, rng=rng, opt_state=state.opt_state)
    return outputs_of(spec)
