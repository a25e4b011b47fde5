"""What an export computes on a sample, compared with what predict's function computes on it."""

import logging
from collections.abc import Mapping, Sequence

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from jaxspec._src.base.types import Array
from jaxspec._src.export.exported_model import ExportedModel
from jaxspec._src.export.platforms import platform_of

_logger = logging.getLogger("jaxspec")
_TOLERANCE, _EQUAL_INTEGERS = 1e-2, 0.5
"""Of the largest value; of all integers. The compiler may round differently where sizes are not known, so that argmax
takes another of two values that are nearly equal. Mistakes are larger."""


def verify(
    data: bytes,
    model: ExportedModel,
    inputs: Mapping[str, np.ndarray],
    want: Mapping[str, np.ndarray],
    name: str,
    platforms: Sequence[str],
) -> None:
    """Raises a ValueError if a serialized program computes something else than predict's function on the same sample.

    Args:
      inputs, want: of a `SampleRun`.
      name: of the signature.
    """
    here = platform_of(model.device)
    if here not in platforms:
        _logger.warning("Signature %r is for %s, and is not verified: here is %r.", name, list(platforms), here)
        return
    exported = jax.export.deserialize(bytearray(data))
    got = jax.jit(exported.call)(model.weights, inputs)
    _check_outputs(got, want, f"signature {name!r}")


def _check_outputs(got: Mapping[str, Array], want: Mapping[str, Array], what: str) -> None:
    for name, expected in want.items():
        a, b = np.asarray(got[name]), np.asarray(expected)
        if a.shape == b.shape and a.dtype == b.dtype and is_close(a, b):
            continue
        raise ValueError(
            f"{what}: the output {name!r} of the exported program differs from what predict computes on the same "
            f"sample: {_summary(a)}, expected {_summary(b)}. model_fn must be a pure function of its arguments: it "
            "may not change global variables, or draw NumPy's random numbers."
        )


def is_close(
    a: np.ndarray, b: np.ndarray, *, tolerance: float = _TOLERANCE, equal_integers: float = _EQUAL_INTEGERS
) -> bool:
    """Whether floats differ from those of `b` by at most `tolerance` of the largest; or whether `equal_integers` of all
    integers are the same."""
    if not jnp.issubdtype(b.dtype, jnp.inexact):
        return bool(np.mean(a == b) >= equal_integers) if b.size else True
    wide = np.complex128 if jnp.issubdtype(b.dtype, jnp.complexfloating) else np.float64
    a, b = a.astype(wide), b.astype(wide)
    largest = float(np.abs(b, where=np.isfinite(b), out=np.zeros(b.shape)).max(initial=0.0))
    return bool(np.allclose(a, b, rtol=tolerance, atol=tolerance * largest, equal_nan=True))


def _summary(x: np.ndarray) -> str:
    first = ", ".join(str(value) for value in x.ravel()[:4])
    return f"{x.dtype}[{','.join(map(str, x.shape))}] of {first}{', ...' if x.size > 4 else ''}"
