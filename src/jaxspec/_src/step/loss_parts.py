"""The loss of an evaluation split into parts, so that it can be averaged exactly over batches of unequal weight."""

import contextlib
import logging
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec._src.base.arrays import at_least_float32
from jaxspec._src.spec.tpu_estimator_spec import TPUEstimatorSpec, replaced
from jaxspec._src.step.axis import mean_over_shards
from jaxspec._src.step.global_mean import Probe, Recorder

_logger = logging.getLogger("jaxspec")
_USUAL_CALLS = 4


def with_parts_of_loss(call: Callable[[], TPUEstimatorSpec]) -> TPUEstimatorSpec:
    """The spec that `call` returns, its loss split into `[rest, term, weight, spread, ...]`, each averaged over shards.

    For each `global_mean` there are three: the term that it adds to the loss, the sum of its weights on all shards (0 if
    the loss does not depend on it), and a spread. The loss is the sum of the terms and the rest. float32 or wider.

    A `global_mean` that runs several times (in a scan, under vmap) is one term, with the mean of the weights. The
    spread is the relative variance of the weights: 0 if they are equal.

    The terms are found by differentiation: the loss is usually linear in them. So it does not matter where in
    model_fn they are computed, and nothing before them is differentiated.
    """
    size = _USUAL_CALLS
    while True:
        recorders: list[Recorder] = []
        try:
            spec, parts = _differentiated(call, size, recorders)
        except Exception:
            if not (recorders and recorders[-1].count):
                raise
            break
        if recorders[-1].count <= size:
            return replaced(spec, loss=parts)
        size = recorders[-1].count
    spec = call()  # raises again if the error was one of model_fn itself
    _logger.warning(
        "The loss cannot be differentiated by its global_mean (a loop of unknown length, or a callback?), so the batches of "
        "this evaluation are weighted by their rows, not by the weights. Call global_mean outside of it, last. Under "
        "jax.disable_jit(), write float(jax.lax.stop_gradient(loss)) for float(loss)."
    )
    return replaced(spec, loss=mean_over_shards(_accumulated_loss(spec))[None])


def _accumulated_loss(spec: TPUEstimatorSpec) -> jax.Array:
    # Half precision cannot hold the number of rows.
    loss = jnp.asarray(spec.loss)
    return loss.astype(at_least_float32(loss.dtype))


def _differentiated(
    call: Callable[[], TPUEstimatorSpec], size: int, recorders: list[Recorder]
) -> tuple[TPUEstimatorSpec, jax.Array]:
    def loss_of(probes: list[Probe]) -> tuple[jax.Array, TPUEstimatorSpec]:
        with contextlib.ExitStack() as contexts:
            recorder = Recorder(probes, contexts)
            recorders.append(recorder)
            contexts.callback(recorder.forget)
            recorder.enter()
            spec = call()
        return _accumulated_loss(spec), replaced(spec, loss=None)

    zero = np.zeros((), jnp.result_type(float))
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
