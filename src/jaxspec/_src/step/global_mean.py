"""The weighted mean over all shards, and what an evaluation has to know of it to be exact over all batches."""

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec._src.base.arrays import at_least_float32
from jaxspec._src.spec.tpu_estimator_spec import TPUEstimatorSpec, replaced
from jaxspec._src.step.axis import mean_over_shards, sum_over_shards
from jaxspec._src.step.debugging import debugging, values_of_tracers

_logger = logging.getLogger("jaxspec")

# A jit cache must not give a function that was traced elsewhere, so a plain context variable would not do.
_recorder = jax.make_user_context(None)
_USUAL_CALLS = 4


def global_mean(values: Any, weights: Any = None) -> jax.Array:
    """The weighted mean of this shard's values, normalised by the weights of all shards.

    `sum(values * weights) / pmean(sum(weights))` over `SHARD_AXIS`, added up in float32 at least: its mean over shards,
    and the gradient of that, are those of the whole batch on one device, however the weights are spread over shards.
    Where the axis is not bound (model_fn called by hand) the mean over shards is left out.

    As the loss, or as a term that is added to the loss, it makes `TPUEstimator.evaluate` report the weighted mean of the
    whole set, for every batch size and number of shards:

        loss = js.global_mean(per_token, mask) + 1e-4 * regularisation

    Each `global_mean` is weighted by the sum of its own weights, and the rest of the loss (the regularisation) by the
    number of rows. A factor is no harm. One that runs several times with unequal weights, in a `scan` or under `vmap`,
    is not exact in evaluation, which is a warning. A function of it that is not linear (`jnp.exp`, a product of two) is
    evaluated as a mean over batches: report such a number with eval_metrics.

    Args:
      values: per-shard array of any shape, floating.
      weights: array that broadcasts to the shape of `values`; None: all ones. A NaN in `values` stays one, whatever its
        weight.

    Returns:
      A scalar of this shard, of the dtype of `values`. 0, with a gradient of 0, where the weights of all shards add up
      to 0: such a batch has no effect.

    Raises:
      ValueError: for weights of another shape.
    """
    values = jnp.asarray(values)
    dtype = values.dtype if jnp.issubdtype(values.dtype, jnp.floating) else jnp.dtype(jnp.float32)
    accumulated = at_least_float32(dtype)
    values = values.astype(accumulated)
    if weights is None:
        weights = jnp.ones_like(values)
    weights = jnp.asarray(weights).astype(accumulated)
    try:
        weights = jnp.broadcast_to(weights, values.shape)
    except ValueError as error:
        error.add_note(
            f"global_mean: weights have shape {weights.shape}, values {values.shape}. For one weight a row write weights[:, None]."
        )
        raise
    weight = jnp.sum(weights)
    normaliser = mean_over_shards(weight)
    empty = normaliser == 0
    mean = jnp.where(empty, 0, jnp.sum(values * weights) / jnp.where(empty, 1, normaliser))
    turn = _recorder.value
    if turn is not None and (probe := turn.recorder.next()) is not None:
        factor, total, square, offset = (x.astype(accumulated) for x in probe)
        total_weight = sum_over_shards(weight)
        mean = mean * (1 + factor) + (total + square * total_weight) * total_weight + offset
    return mean.astype(dtype)


class _Recorder:
    """Gives each `global_mean` of a trace four zeros of its own, by which the loss is differentiated.

    Args:
      probes: the zeros; a `global_mean` beyond them gets none.
      contexts: left when the trace ends.
    """

    def __init__(self, probes: Any, contexts: contextlib.ExitStack) -> None:
        self._probes, self._contexts, self.count = probes, contexts, 0

    def next(self) -> Any:
        """The zeros of the next one."""
        probe = self._probes[self.count] if self.count < len(self._probes) else None
        self.count += 1
        self.enter()
        return probe

    def enter(self) -> None:
        """Makes the context another one: a jitted function that is called twice is to be traced twice."""
        self._contexts.enter_context(_recorder(_Turn(self)))

    def forget(self) -> None:
        """Lets go of the tracers: the caches of jit keep what is in a context."""
        self._probes = ()


class _Turn:
    """What is in the context. Compared by identity, so that each is another key for the caches of jit."""

    def __init__(self, recorder: _Recorder) -> None:
        self.recorder = recorder


def with_parts_of_loss(call: Callable[[], TPUEstimatorSpec]) -> TPUEstimatorSpec:
    """The spec that `call` returns, its loss taken apart: `[rest, term, weight, spread, ...]`, averaged over shards.

    There is a term for each `global_mean`: what it adds to the loss, and the sum of its weights on all shards (0 where
    the loss does not depend on it). The loss is the sum of the terms and the rest. At least float32.

    A `global_mean` that runs several times (in a scan, under vmap) is one term, with the mean of the weights. The
    spread is their relative variance: 0 if they are equal.

    The terms are found by differentiation: the loss is linear in them, as a rule. So it does not matter where in
    model_fn they are computed, and nothing before them is differentiated.
    """
    size = _USUAL_CALLS
    while True:
        recorders: list[_Recorder] = []
        try:
            spec, parts = _differentiated(call, size, recorders)
        except Exception:
            if not (recorders and recorders[-1].count):
                raise
            break
        if recorders[-1].count <= size:
            return replaced(spec, loss=parts)
        size = recorders[-1].count
    spec = call()  # an error of model_fn's own is raised here again
    _logger.warning(
        "The loss cannot be differentiated by its global_mean (a loop of unknown length, or a callback?), so the batches of "
        "this evaluation are weighted by their rows, not by the weights. Call global_mean outside of it, last."
    )
    return replaced(spec, loss=mean_over_shards(_accumulated(spec.loss))[None])


def _accumulated(loss: Any) -> Any:
    # Half precision cannot hold the number of rows.
    return jnp.asarray(loss).astype(at_least_float32(loss.dtype))


def _differentiated(
    call: Callable[[], TPUEstimatorSpec], size: int, recorders: list[_Recorder]
) -> tuple[TPUEstimatorSpec, jax.Array]:
    def loss_of(probes: Any) -> tuple[jax.Array, TPUEstimatorSpec]:
        with contextlib.ExitStack() as contexts:
            recorder = _Recorder(probes, contexts)
            recorders.append(recorder)
            contexts.callback(recorder.forget)
            recorder.enter()
            spec = call()
        return _accumulated(spec.loss), replaced(spec, loss=None)

    zero = np.zeros((), jnp.result_type(float))
    with values_of_tracers() if debugging() else contextlib.nullcontext():
        loss, pullback, spec = jax.vjp(loss_of, [(zero, zero, zero, zero)] * size, has_aux=True)
    if not (count := recorders[-1].count):
        return spec, mean_over_shards(loss)[None]
    (gradients,) = pullback(jnp.ones_like(loss))
    # Of each, summed over its runs: the term; factor * weight; factor * weight**2; factor.
    terms = jnp.stack([jnp.stack(of_one) for of_one in gradients[:count]]).astype(loss.dtype)
    loss, terms = mean_over_shards((loss, terms))
    term, weighted, squares, factor = (terms[:, i] for i in range(4))
    weight = jnp.where(factor == 0, 0, weighted / jnp.where(factor == 0, 1, factor))
    cancelled = (squares != 0) | ((factor == 0) & (term != 0))
    spread = jnp.abs(squares * factor / jnp.where(weighted == 0, 1, weighted) ** 2 - 1)
    spread = jnp.where((weighted == 0) | (factor == 0), cancelled, spread)
    total = jnp.sum(term)
    rest = jnp.where(jnp.isfinite(total), loss - total, 0)
    return spec, jnp.concatenate([rest[None], jnp.stack([term, weight, spread], 1).reshape(-1)])
