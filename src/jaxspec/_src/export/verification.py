"""What an export computes on a sample, compared with what predict's function computes on it."""

import logging
from collections.abc import Mapping, Sequence

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from jaxspec._src.base.arrays import describe_leaves
from jaxspec._src.base.types import Array
from jaxspec._src.export.exported_model import ExportedModel
from jaxspec._src.export.platforms import platform_of
from jaxspec._src.export.tensor_spec import TensorSpec
from jaxspec._src.step.dependence import Dependence

_logger = logging.getLogger("jaxspec")
_SAMPLE_ROWS, _SAMPLE_SIZE = 7, 16
"""Of the batch and of the other open dimensions of a sample."""
_TOLERANCE, _EQUAL_INTEGERS = 1e-2, 0.5
"""Of the largest value; of all integers. The compiler may round differently where sizes are not known, so that argmax
takes another of two values that are nearly equal. Mistakes are larger."""


def sample(specs: Mapping[str, TensorSpec], rows: int | None) -> dict[str, np.ndarray]:
    """Random arrays for receivers of these specs: normal floats; integers of 0 and 1, which any table has."""
    rng = np.random.default_rng(0)

    def one(x: TensorSpec) -> np.ndarray:
        size = (rows or _SAMPLE_ROWS, *(d if isinstance(d, int) else _SAMPLE_SIZE for d in x.shape[1:]))
        drawn = rng.normal(size=size) if jnp.issubdtype(x.dtype, jnp.inexact) else rng.integers(0, 2, size)
        return np.asarray(drawn).astype(x.dtype)

    return {name: one(x) for name, x in specs.items()}


def run_on_sample(model: ExportedModel, rows: int | None) -> dict[str, dict[str, np.ndarray]]:
    """What predict's function computes on a sample, by signature.

    Raises:
      ValueError: if it does not use one of the inputs.
    """
    arguments = model.weights, sample(model.inputs, rows), model.rng_data
    try:
        program = jax.jit(model.function()).trace(*arguments)
        outputs: dict[str, dict[str, np.ndarray]] = jax.device_get(program.lower().compile()(*arguments))
    except Exception as error:
        error.add_note(
            f"raised when export_saved_model ran model_fn on a sample of what serving_input_receiver_fn describes: "
            f"{describe_leaves(arguments[1])}"
        )
        raise
    values = Dependence(program.jaxpr.jaxpr)
    _, inputs, rng = jax.tree.unflatten(jax.tree.structure(arguments), values.inputs)
    unused = [name for name, value in inputs.items() if not values.reaches_an_output(value)]
    if unused:
        raise ValueError(
            f"receiver_tensors {sorted(unused)} are not used by any signature of {sorted(outputs)}: got "
            f"{describe_leaves(model.inputs)}. Leave them out of receiver_tensors, or let model_fn use them in PREDICT."
        )
    if values.reaches_an_output(rng):
        _logger.warning(
            "model_fn uses `rng` in PREDICT: each call of the export draws the same random numbers. For other ones let "
            "callers pass a seed: receiver_tensors={'seed': export.TensorSpec((None,), jnp.int32), ...}."
        )
    return outputs


def verify(
    data: bytes,
    model: ExportedModel,
    rows: int | None,
    want: Mapping[str, np.ndarray],
    name: str,
    platforms: Sequence[str],
) -> None:
    """Raises a ValueError if a serialized program computes something else than predict's function on the same sample.

    Args:
      want: from `run_on_sample`.
      name: of the signature.
    """
    here = platform_of(model.device)
    if here not in platforms:
        _logger.warning("Signature %r is for %s, and is not verified: here is %r.", name, list(platforms), here)
        return
    exported = jax.export.deserialize(bytearray(data))
    got = jax.jit(exported.call)(model.weights, sample(model.inputs, rows))
    _check_outputs(got, want, f"signature {name!r}")


def _check_outputs(got: Mapping[str, Array], want: Mapping[str, Array], what: str) -> None:
    for name, expected in want.items():
        a, b = np.asarray(got[name]), np.asarray(expected)
        if a.shape == b.shape and a.dtype == b.dtype and _close(a, b):
            continue
        raise ValueError(
            f"{what}: the output {name!r} of the exported program differs from what predict computes on the same "
            f"sample: {_summary(a)}, expected {_summary(b)}. model_fn must be a pure function of its arguments: it "
            "may not change global variables, or draw NumPy's random numbers."
        )


def _close(a: np.ndarray, b: np.ndarray) -> bool:
    if not jnp.issubdtype(b.dtype, jnp.inexact):
        return bool(np.mean(a == b) >= _EQUAL_INTEGERS) if b.size else True
    wide = np.complex128 if jnp.issubdtype(b.dtype, jnp.complexfloating) else np.float64
    a, b = a.astype(wide), b.astype(wide)
    largest = float(np.abs(b, where=np.isfinite(b), out=np.zeros(b.shape)).max(initial=0.0))
    return bool(np.allclose(a, b, rtol=_TOLERANCE, atol=_TOLERANCE * largest, equal_nan=True))


def _summary(x: np.ndarray) -> str:
    first = ", ".join(str(value) for value in x.ravel()[:4])
    return f"{x.dtype}[{','.join(map(str, x.shape))}] of {first}{', ...' if x.size > 4 else ''}"
