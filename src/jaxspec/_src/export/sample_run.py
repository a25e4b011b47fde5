"""What predict's function computes on a sample, and whether it computes each row by itself."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr

from jaxspec._src.base.arrays import describe_leaves, is_key
from jaxspec._src.base.types import PyTree
from jaxspec._src.export.exported_model import ExportedModel
from jaxspec._src.export.tensor_spec import TensorSpec
from jaxspec._src.export.verification import is_close
from jaxspec._src.step.dependence import Dependence

_logger = logging.getLogger("jaxspec")
_SAMPLE_ROWS, _SAMPLE_SIZE = 7, 16
"""Of the batch and of the other open dimensions of a sample."""
_TOLERANCE = 1e-3
"""Of the largest value, where one program computes the same row at two places of a batch."""


class SampleRun(NamedTuple):
    """What predict's function computes on a sample.

    Attributes:
      inputs: the sample, by name.
      outputs: by signature and name.
      rowwise: by signature, whether what it returns for a row depends on nothing but that row.
    """

    inputs: dict[str, np.ndarray]
    outputs: dict[str, dict[str, np.ndarray]]
    rowwise: dict[str, bool]


def sample(specs: Mapping[str, TensorSpec], rows: int | None, seed: int = 0) -> dict[str, np.ndarray]:
    """Random arrays for receivers of these specs: normal floats; integers of 0 and 1, which any table has."""
    rng = np.random.default_rng(seed)

    def one(x: TensorSpec) -> np.ndarray:
        size = (rows or _SAMPLE_ROWS, *(d if isinstance(d, int) else _SAMPLE_SIZE for d in x.shape[1:]))
        drawn = rng.normal(size=size) if jnp.issubdtype(x.dtype, jnp.inexact) else rng.integers(0, 2, size)
        return np.asarray(drawn).astype(x.dtype)

    return {name: one(x) for name, x in specs.items()}


@contextlib.contextmanager
def noted_sample(what: str, inputs: Mapping[str, np.ndarray]) -> Iterator[None]:
    """Adds to an error of `what`, a function of the user, that it ran on a sample."""
    try:
        yield
    except Exception as error:
        error.add_note(
            f"raised when export_saved_model ran {what} on a sample of what serving_input_receiver_fn describes: "
            f"{describe_leaves(inputs)}"
        )
        raise


def run_on_sample(model: ExportedModel, rows: int | None) -> SampleRun:
    """Runs predict's function on a sample, and again with other rows around some of the same ones.

    Raises:
      TypeError: if it returns random keys.
      ValueError: if it does not use one of the inputs.
    """
    first, second = (sample(model.inputs, rows, seed) for seed in (0, 1))
    arguments = model.weights, first, model.rng_data
    with noted_sample("model_fn", first):
        program = jax.jit(model.function()).trace(*arguments)
        _refuse_keys(program.out_info)
        compiled = program.lower().compile()
        outputs: dict[str, dict[str, np.ndarray]] = jax.device_get(compiled(*arguments))
    size = len(next(iter(first.values())))
    moved = size // 2
    inputs = {name: np.concatenate([second[name][moved:], x[:moved]]) for name, x in first.items()}
    again = jax.device_get(compiled(model.weights, inputs, model.rng_data))
    _check_use(program.jaxpr.jaxpr, arguments, model, outputs)
    rowwise = {name: _is_rowwise(one, again[name], size, moved) for name, one in outputs.items()}
    return SampleRun(first, outputs, rowwise)


def _refuse_keys(outputs: Mapping[str, Mapping[str, jax.ShapeDtypeStruct]]) -> None:
    for signature, arrays in outputs.items():
        for name, array in arrays.items():
            if is_key(array):
                raise TypeError(
                    f"signature {signature!r} returns random keys as {name!r}: {array.dtype}. Return their numbers: "
                    "jax.random.key_data(keys)."
                )


def _check_use(
    jaxpr: Jaxpr, arguments: tuple[PyTree, ...], model: ExportedModel, outputs: Mapping[str, object]
) -> None:
    """A ValueError for inputs that no output depends on; a warning if random numbers reach one."""
    values = Dependence(jaxpr)
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


def _is_rowwise(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray], size: int, moved: int) -> bool:
    """Whether the outputs for the first `moved` of `size` rows are the same where these rows are the last ones."""

    def same(a: np.ndarray, b: np.ndarray) -> bool:
        return is_close(b, a, tolerance=_TOLERANCE, equal_integers=1.0)

    def fits(a: np.ndarray, b: np.ndarray) -> bool:
        # What is the same for all rows is so, too, if by chance it has as many entries.
        return same(a, b) or (a.shape[:1] == (size,) and same(a[:moved], b[size - moved :]))

    return all(fits(a, second[name]) for name, a in first.items())
