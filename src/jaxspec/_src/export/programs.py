"""One signature as a program of jax.export: for a batch of any size, or of one size, on several platforms."""

import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from jaxspec._src.base.arrays import describe_leaves
from jaxspec._src.base.types import Array
from jaxspec._src.export.signature_file import BATCH
from jaxspec._src.export.tensor_spec import TensorSpec

Arrays: TypeAlias = Mapping[str, Array]
Shapes: TypeAlias = Mapping[str, jax.ShapeDtypeStruct]
Specs: TypeAlias = Mapping[str, TensorSpec]

_SAMPLE_ROWS, _SAMPLE_SIZE = 7, 16
"""Of the batch and of the other open dimensions of a sample."""
_TOLERANCE, _EQUAL_INTEGERS = 1e-2, 0.5
"""Of the largest value; of all integers. The compiler may round differently where sizes are not known, so that argmax
takes another of two values that are nearly equal. Mistakes are larger."""
_LIBRARIES = ("site-packages", "dist-packages", "/jaxspec/_src/", "<frozen")


def sample(specs: Specs, rows: int | None) -> dict[str, np.ndarray]:
    """Random arrays for receivers of these specs: normal floats; integers of 0 and 1, which any table has."""
    rng = np.random.default_rng(0)

    def one(x: TensorSpec) -> np.ndarray:
        size = (rows or _SAMPLE_ROWS, *(d if isinstance(d, int) else _SAMPLE_SIZE for d in x.shape[1:]))
        drawn = rng.normal(size=size) if jnp.issubdtype(x.dtype, jnp.inexact) else rng.integers(0, 2, size)
        return np.asarray(drawn).astype(x.dtype)

    return {name: one(x) for name, x in specs.items()}


def open_shapes(specs: Specs, rows: int | None) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of receivers with symbolic dimensions for those that are open; `rows`: of the batch, if not None."""
    names = {d for x in specs.values() for d in x.shape if isinstance(d, str)}
    unnamed = (f"size{i}" for i in range(10**6) if f"size{i}" not in names)
    scope = jax.export.SymbolicScope()

    def one(x: TensorSpec) -> jax.ShapeDtypeStruct:
        dims = [BATCH if rows is None else rows, *(next(unnamed) if d is None else d for d in x.shape[1:])]
        return jax.ShapeDtypeStruct(
            tuple(jax.export.symbolic_shape(d, scope=scope)[0] if isinstance(d, str) else d for d in dims), x.dtype
        )

    return {name: one(x) for name, x in specs.items()}


def export_program(
    fn: Callable[[Arrays, Arrays], dict[str, Array]],
    weights: Shapes,
    inputs: Shapes,
    platforms: Sequence[str],
    signature: str,
) -> jax.export.Exported:
    """Traces and lowers a function that is known to run on a sample.

    Args:
      fn: `(weights, inputs) -> outputs`, all by name.
      inputs: from `open_shapes`.

    Raises:
      ValueError: if it has no form for the symbolic dimensions of `inputs`, naming the line.
    """
    jitted = jax.jit(fn)
    is_open = any(not isinstance(d, int) for x in inputs.values() for d in x.shape)
    try:
        jitted.trace(weights, inputs)
    except Exception as error:
        if not is_open:
            raise
        raise ValueError(
            f"signature {signature!r} has no form for open sizes ({describe_leaves(inputs)}). The line that needs a "
            f"number: {_line_of(error)}. {type(error).__name__}: {_first_line(error)} Write it without one: "
            "x.reshape(x.shape[0], -1); jnp.where and jnp.zeros in place of Python's `if` and NumPy; one name in "
            "receiver_tensors for sizes that are equal, (None, 'length'). Or export fixed numbers of rows: "
            "batch_sizes=[1, 8, 64]."
        ) from error
    try:
        return jax.export.export(jitted, platforms=platforms)(weights, inputs)
    except Exception as error:
        error.add_note(
            f"jaxspec: signature {signature!r} could not be lowered for platforms={tuple(platforms)} with the inputs "
            f"{describe_leaves(inputs)}. Name fewer platforms, or fixed numbers of rows: batch_sizes=[1, 8, 64]."
        )
        raise


def check_outputs(got: Arrays, want: Arrays, what: str) -> None:
    """Raises a ValueError if the outputs of an export differ from those of predict's function on the same arrays."""
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


def _line_of(error: Exception) -> str:
    """The line of the user's code that raised the error."""
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if not any(part in frame.filename for part in _LIBRARIES)] or list(frames)
    frame = users[-1]
    return f"`{frame.line}` ({frame.filename}:{frame.lineno})"


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line), "").rstrip(".") + "."
