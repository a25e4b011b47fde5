"""What is passed to a signature of an export, checked and converted."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec._src.base.arrays import describe_array, fits
from jaxspec._src.base.types import Array
from jaxspec._src.export.signature_file import ArrayForm


def describe_forms(forms: Mapping[str, ArrayForm]) -> str:
    """As `x: float32[batch,28,28], length: int32[batch]`."""
    return ", ".join(f"{name}: {_describe(form)}" for name, form in forms.items())


def checked_arguments(signature: str, forms: Mapping[str, ArrayForm], given: Mapping[str, object]) -> dict[str, Array]:
    """The arrays that were passed, in the dtypes of the signature.

    Args:
      signature: its name, for messages.
      forms: what it takes, by name.
      given: arrays, or what NumPy makes arrays of.

    Raises:
      ValueError: for other names, shapes or kinds of numbers; says what was expected.
    """
    if given.keys() != forms.keys():
        raise ValueError(
            f"signature {signature!r} takes {describe_forms(forms)}, got {', '.join(sorted(given)) or 'no array'}. "
            "Pass each by its name."
        )
    arrays = {name: _converted(name, form, given[name]) for name, form in forms.items()}
    sizes: dict[str, tuple[int, str]] = {}  # by the name of the dimension: its size, and who said so first
    for name, form in forms.items():
        shape = arrays[name].shape
        if len(shape) != len(form["shape"]):
            raise ValueError(_wrong(name, form, describe_array(arrays[name])))
        for expected, size in zip(form["shape"], shape, strict=True):
            known, first = (expected, "") if isinstance(expected, int) else sizes.setdefault(expected, (size, name))
            if size != known:
                also = f" ({expected} is {known} in {first!r})" if first else ""
                raise ValueError(_wrong(name, form, describe_array(arrays[name])) + also)
            if size == 0 and first:
                raise ValueError(_wrong(name, form, describe_array(arrays[name])) + f": {expected} is at least 1")
    return arrays


def _converted(name: str, form: ArrayForm, value: object) -> Array:
    dtype = jnp.dtype(form["dtype"])
    if isinstance(value, jax.Array) and value.dtype == dtype:
        return value
    try:
        array = value if isinstance(value, jax.Array) else np.asarray(value)
    except ValueError as error:
        raise ValueError(_wrong(name, form, f"{type(value).__name__} whose lengths differ")) from error
    if array.dtype == dtype:
        return array
    if array.dtype.kind in "SUOT":
        raise ValueError(
            _wrong(name, form, describe_array(array))
            + ". An export takes numbers: parse strings and decode images before."
        )
    converted = array.astype(dtype) if fits(array, dtype, exactly=False) else None
    if converted is None or (jnp.issubdtype(dtype, jnp.integer) and not (converted == array).all()):
        raise ValueError(_wrong(name, form, describe_array(array)) + f". Convert it: x.astype({str(dtype)!r})")
    return converted


def _describe(form: ArrayForm) -> str:
    return f"{form['dtype']}[{','.join(map(str, form['shape']))}]"


def _wrong(name: str, form: ArrayForm, got: str) -> str:
    return f"{name!r} must be {_describe(form)}, got {got}"
