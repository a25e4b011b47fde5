"""The pure steps of evaluation and prediction."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.extend
import numpy as np

from jaxspec._src.spec.mode import Mode, ModeKeys
from jaxspec._src.spec.tpu_estimator_spec import TPUEstimatorSpec, WholeBatchSpec, replaced
from jaxspec._src.step.axis import bind_shard_axis, mean_over_shards, shard_axis_is_bound, shard_index, varying
from jaxspec._src.step.global_mean import with_parts_of_loss
from jaxspec._src.step.leaving import leaving_device
from jaxspec._src.step.model import Model
from jaxspec._src.step.state import TrainState


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


# No step: those of training are folded in alone, and are no larger than an int32.
_RNG_OF_MODE = {ModeKeys.EVAL: np.uint32(2**32 - 1), ModeKeys.PREDICT: np.uint32(2**32 - 2)}


def _inference_rng(mode: str, state: TrainState, batch: Any, shard: Any) -> jax.Array:
    rng: jax.Array = state.rng
    for number in (_RNG_OF_MODE[mode], state.step, batch, shard):
        rng = jax.random.fold_in(rng, number)
    return rng


def _infer(
    mode: Mode, model: Model, state: TrainState, features: Any, labels: Any, batch: Any, shard: Any
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
