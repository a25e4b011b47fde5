"""One signature as a program of jax.export: for a batch of any size, or of one size, on several platforms."""

import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import jax
import jax.export

from jaxspec._src.base.arrays import describe_leaves
from jaxspec._src.base.types import Array
from jaxspec._src.export.signature_file import BATCH
from jaxspec._src.export.tensor_spec import TensorSpec

Arrays: TypeAlias = Mapping[str, Array]
Shapes: TypeAlias = Mapping[str, jax.ShapeDtypeStruct]
Specs: TypeAlias = Mapping[str, TensorSpec]

_LIBRARIES = ("site-packages", "dist-packages", "/jaxspec/_src/", "<frozen")


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


def _line_of(error: Exception) -> str:
    """The line of the user's code that raised the error."""
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if not any(part in frame.filename for part in _LIBRARIES)] or list(frames)
    frame = users[-1]
    return f"`{frame.line}` ({frame.filename}:{frame.lineno})"


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line), "").rstrip(".") + "."
