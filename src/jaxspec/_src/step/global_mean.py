"""The weighted mean over all shards."""

import contextlib
from typing import TypeAlias

import jax
import jax.numpy as jnp

from jaxspec._src.base.arrays import at_least_float32
from jaxspec._src.base.types import Array
from jaxspec._src.step.axis import mean_over_shards, sum_over_shards

Probe: TypeAlias = tuple[Array, Array, Array, Array]
"""Four zeros that a `global_mean` is computed with: (factor, total, square, offset). Their gradients show its parts."""

# Part of the keys of the caches of jit, unlike a context variable: a function traced elsewhere has recorded nothing.
_current = jax.make_user_context(None)


def global_mean(values: Array, weights: Array | None = None) -> jax.Array:
    """The weighted mean of this shard's values, normalised by the weights of all shards.

    `sum(values * weights) / pmean(sum(weights))` over `SHARD_AXIS`, added up in float32 at least: its mean over shards,
    and the gradient of that, are those of the whole batch on one device, however the weights are spread over shards.
    Where the axis is not bound (model_fn called by hand) the mean over shards is left out.

    As the loss, or as a term that is added to the loss, it makes `TPUEstimator.evaluate` report the weighted mean of the
    whole set, for every batch size and number of shards:

        loss = js.global_mean(per_token, mask) + 1e-4 * regularisation

    Each `global_mean` is weighted by the sum of its own weights, and the rest of the loss (the regularisation) by the
    number of rows. A factor does not matter. A `global_mean` that runs several times with unequal weights, in a `scan` or under `vmap`,
    is not exact in evaluation, which is reported by a warning. A nonlinear function of it (`jnp.exp`, a product of two) is
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
    current = _current.value
    if current is not None and (probe := current.recorder.next()) is not None:
        factor, total, square, offset = (x.astype(accumulated) for x in probe)
        total_weight = sum_over_shards(weight)
        mean = mean * (1 + factor) + (total + square * total_weight) * total_weight + offset
    return mean.astype(dtype)


class Recorder:
    """Gives each `global_mean` of a trace a probe.

    Args:
      probes: a `global_mean` beyond these gets none.
      contexts: closed when the trace ends.
    """

    def __init__(self, probes: list[Probe], contexts: contextlib.ExitStack) -> None:
        self._probes, self._contexts = probes, contexts
        self.count = 0
        """How many `global_mean` there were."""

    def next(self) -> Probe | None:
        """The probe of the next `global_mean`."""
        probe = self._probes[self.count] if self.count < len(self._probes) else None
        self.count += 1
        self.enter()
        return probe

    def enter(self) -> None:
        """Makes the context a new one, so that a jitted function that is called twice is traced twice."""
        self._contexts.enter_context(_current(_Turn(self)))

    def forget(self) -> None:
        """Drops the tracers: the caches of jit keep what is in a context."""
        self._probes = []


class _Turn:
    """The value of the context. Compared by identity, so that each is a new key for the caches of jit."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
