"""The arguments of metric functions: anything that NumPy can read, in shapes that fit one another."""

import operator
from typing import SupportsIndex, TypeAlias

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxspec._src.metrics.shard_scalars import ShardScalars, refuse_shard_scalars

Weights: TypeAlias = ArrayLike | None
"""Of examples, or of entries; None: all 1."""


def as_array(name: str, value: object, *, text: bool = False, shard_scalars: bool = False) -> np.ndarray:
    """`value` as a NumPy array of numbers.

    Half precision (bfloat16, float16, float8) becomes float32, and 4-bit integers become int32: both are exact, and
    NumPy's own loops are fast and complete for these only.

    Args:
      name: of the argument, for errors.
      text: whether text and objects are allowed, too.
      shard_scalars: whether `ShardScalars` are allowed: the caller weights them by rows.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name} is a masked array, whose mask this metric would ignore; "
            f"pass {name}.data and weights=~mask, or leave the masked examples out"
        )
    if not shard_scalars:
        refuse_shard_scalars(name, value)
    array = np.asarray(value)
    dtype = array.dtype
    if dtype.kind in "biu" or dtype in (np.float32, np.float64):
        return array
    if jnp.issubdtype(dtype, np.integer):
        return array.astype(np.int32)
    if jnp.issubdtype(dtype, np.floating):
        return array.astype(np.float64 if dtype.itemsize > 4 else np.float32)
    if text:
        return array
    raise TypeError(f"{name} has dtype {dtype}; expected numbers or booleans")


def as_integers(name: str, value: ArrayLike) -> np.ndarray:
    """`value` as int64. Floats lose their fraction, as in a cast."""
    array = as_array(name, value)
    with np.errstate(invalid="ignore"):  # NaN becomes some integer; the check of the range finds it
        return array.astype(np.int64, copy=False)


def as_count(name: str, value: SupportsIndex, least: int) -> int:
    """`value` as a Python integer, at least `least`."""
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}; expected an integer") from None
    if count < least:
        raise ValueError(f"{name} is {count}; expected an integer >= {least}")
    return count


def labels_and_predictions(
    labels: ArrayLike, predictions: ArrayLike, *, text: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions as arrays of one shape; `text` as in `as_array`."""
    truth, guess = as_array("labels", labels, text=text), as_array("predictions", predictions, text=text)
    return same_shape(("labels", truth), ("predictions", guess))


def same_shape(first: tuple[str, np.ndarray], second: tuple[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Two named arrays in one shape: a last axis of size 1 that only one of them has is dropped."""
    (name, a), (other, b) = first, second
    if a.ndim == b.ndim + 1 and a.shape[-1] == 1:
        a = a[..., 0]
    elif b.ndim == a.ndim + 1 and b.shape[-1] == 1:
        b = b[..., 0]
    if a.shape != b.shape:
        raise ValueError(
            f"{name} has shape {first[1].shape} and {other} has shape {second[1].shape}; "
            "expected equal shapes, up to a last axis of size 1"
        )
    return a, b


def values_and_weights(values: ArrayLike, weights: Weights) -> tuple[np.ndarray, ArrayLike | None]:
    """`values` as an array, and its weights: for `ShardScalars` the rows of each shard, times a scalar weight."""
    if isinstance(values, ShardScalars) and (weights is None or np.ndim(weights) == 0):
        weights = values.weights() if weights is None else values.weights() * np.asarray(weights)
    return as_array("values", values, shard_scalars=True), weights


def as_weights(weights: Weights, shape: tuple[int, ...], *, allow_negative: bool = False) -> np.ndarray | None:
    """`weights` as a view of shape `shape`, or None.

    A scalar is accepted, and an array each of whose axes has the size in `shape` or 1. A missing last axis is added
    (weights [B] for [B, D]: one for each row), and a last axis of size 1 too many is dropped ([B, 1] for [B]).
    """
    if weights is None:
        return None
    array = given = as_array("weights", weights, shard_scalars=True)
    if array.ndim == len(shape) + 1 and array.shape[-1] == 1:
        array = array[..., 0]
    elif 0 < array.ndim == len(shape) - 1:
        array = array[..., None]
    fits = array.ndim in (0, len(shape)) and all(
        size in (1, full) for size, full in zip(array.shape, shape[len(shape) - array.ndim :], strict=True)
    )
    if not fits:
        raise ValueError(
            f"weights has shape {given.shape}; expected a scalar or a shape that broadcasts to {shape}: "
            "the same number of axes, each of the same size or 1"
        )
    if not allow_negative and array.size and array.dtype.kind in "if" and array.min() < 0:
        raise ValueError(f"weights has a negative entry, {array.min()}; expected weights >= 0: they count examples")
    return np.broadcast_to(array, shape)
