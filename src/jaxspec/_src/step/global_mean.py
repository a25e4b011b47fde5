"""global_mean: a weighted mean over all shards. And the loss of an evaluation, split into such means."""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec._src.base.arrays import at_least_float32
from jaxspec._src.base.types import Array
from jaxspec._src.spec.tpu_estimator_spec import TPUEstimatorSpec, replaced
from jaxspec._src.step.axis import mean_over_shards, sum_over_shards

_logger = logging.getLogger("jaxspec")
_USUAL_CALLS = 4
Probe: TypeAlias = tuple[Array, Array, Array, Array]
"""Four zeros that a `global_mean` is computed with: (factor, total, square, offset). Their gradients show its parts."""

# Part of the keys of the caches of jit, unlike a context variable: a function traced elsewhere has recorded nothing.
_current = jax.make_user_context(None)


def global_mean(values: Array, weights: Array | None = None) -> jax.Array:
    """The weighted mean of this shard's values, normalised by the weights of all shards.

    `sum(values * weights) / pmean(sum(weights))` over `SHARD_AXIS`, added up in float32 at least: its mean over shards,
    and the gradient of that, are those of the whole batch on one device, however the weights are spread over shards.
    Where the axis is not bound (model_fn called by hand) the mean over shards is left out.

    As the loss, or as a term that is added to the loss, it makes `TPUEstimator.evaluate` report the weighted mean of
    the whole set, for every batch size and number of shards:

        loss = js.global_mean(per_token, mask) + 1e-4 * regularisation

    Each `global_mean` is weighted by the sum of its own weights, and the rest of the loss (the regularisation) by the
    number of rows. A factor does not matter. A `global_mean` that runs several times with unequal weights, in a `scan`
    or under `vmap`, is not exact in evaluation, which is reported by a warning. A nonlinear function of it (`jnp.exp`,
    a product of two) is
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
    weights = jnp.asarray(1 if weights is None else weights).astype(accumulated)
    try:
        weights = jnp.broadcast_to(weights, values.shape)
    except ValueError as error:
        error.add_note(
            f"global_mean: weights have shape {weights.shape}, values {values.shape}. For one weight a row write "
            "weights[:, None]."
        )
        raise
    weight = jnp.sum(weights)
    normaliser = mean_over_shards(weight)
    empty = normaliser == 0
    mean = jnp.where(empty, 0, jnp.sum(values * weights) / jnp.where(empty, 1, normaliser))
    current = _current.value
    if current is not None and (probe := current()) is not None:
        factor, total, square, offset = (x.astype(accumulated) for x in probe)
        total_weight = sum_over_shards(weight)
        mean = mean * (1 + factor) + (total + square * total_weight) * total_weight + offset
    return mean.astype(dtype)


def with_parts_of_loss(call: Callable[[], TPUEstimatorSpec]) -> TPUEstimatorSpec:
    """The spec that `call` returns, its loss split into `[rest, term, weight, spread, ...]`, each averaged over shards.

    For each `global_mean` there are three: the term that it adds to the loss, the sum of its weights on all shards (0
    if the loss does not depend on it), and a spread. The loss is the sum of the terms and the rest. float32 or wider.

    A `global_mean` that runs several times (in a scan, under vmap) is one term, with the mean of the weights. The
    spread is the relative variance of the weights: 0 if they are equal.

    The terms are found by differentiation: the loss is usually linear in them. So it does not matter where in
    model_fn they are computed, and nothing before them is differentiated.
    """
    size = _USUAL_CALLS
    while True:
        recorder = _Recorder()
        try:
            spec, parts = _differentiated(call, size, recorder)
        except Exception:
            if not recorder.count:
                raise
            break
        if recorder.count <= size:
            return replaced(spec, loss=parts)
        size = recorder.count
    spec = call()  # raises again if the error was one of model_fn itself
    _logger.warning(
        "The loss cannot be differentiated by its global_mean (a loop of unknown length, or a callback?), so the "
        "batches of this evaluation are weighted by their rows, not by the weights. Call global_mean outside of it, "
        "last. Under jax.disable_jit(), write float(jax.lax.stop_gradient(loss)) for float(loss)."
    )
    return replaced(spec, loss=mean_over_shards(_accumulated_loss(spec))[None])


def _accumulated_loss(spec: TPUEstimatorSpec) -> jax.Array:
    # Half precision cannot hold the number of rows.
    loss = jnp.asarray(spec.loss)
    return loss.astype(at_least_float32(loss.dtype))


class _Recorder:
    """Gives each `global_mean` of a trace a probe."""

    count = 0
    """How many `global_mean` there were."""

    @contextlib.contextmanager
    def giving(self, probes: list[Probe]) -> Iterator[None]:
        """A context for the trace. A `global_mean` beyond these probes gets none."""
        self.count = 0
        with contextlib.ExitStack() as contexts:
            contexts.callback(probes.clear)  # the caches of jit keep what is in a context

            def next_probe() -> Probe | None:
                self.count += 1
                enter()
                return probes[self.count - 1] if self.count <= len(probes) else None

            def enter() -> None:
                # A new object each time, so that a jitted function that is called twice is traced twice.
                contexts.enter_context(_current(functools.partial(next_probe)))

            enter()
            yield


def _differentiated(
    call: Callable[[], TPUEstimatorSpec], size: int, recorder: _Recorder
) -> tuple[TPUEstimatorSpec, jax.Array]:
    def loss_of(probes: list[Probe]) -> tuple[jax.Array, TPUEstimatorSpec]:
        with recorder.giving(probes):
            spec = call()
        return _accumulated_loss(spec), replaced(spec, loss=None)

    zero = np.zeros((), jnp.result_type(float))
    loss, pullback, spec = jax.vjp(loss_of, [(zero,) * 4] * size, has_aux=True)
    if not (count := recorder.count):
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
