"""Means of an error: absolute, squared, relative, and the cosine distance."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from jaxspec._src.metrics.inputs import as_array, as_weights, ratio_or_zero, same_shape, total, weight_of
from jaxspec._src.metrics.mean import mean_of, mean_or_zero
from jaxspec._src.metrics.metric import Array, Floats, Metric, sums_of


def _difference(labels: Any, predictions: Any) -> Array:
    a, b = same_shape(("labels", as_array("labels", labels)), ("predictions", as_array("predictions", predictions)))
    # Float64 keeps the difference of integers from wrapping round and the square of a float32 from
    # overflowing.
    with np.errstate(all="ignore"):
        return np.subtract(b, a, dtype=np.float64)


def mean_absolute_error(labels: Any, predictions: Any, weights: Any = None) -> Metric:
    """Weighted mean of `|predictions - labels|`.

    Args:
      labels: numbers of any shape.
      predictions: the same shape, up to a last axis of size 1 (`[B, 1]` against `[B]` is squeezed, not
        broadcast).
      weights: as for `metrics.mean`.

    Returns:
      A value that computes a float, 0.0 where the total weight is 0 or below.

    >>> from jaxspec import metrics
    >>> metrics.mean_absolute_error(labels=[1.0, 2.0], predictions=[1.5, 4.0]).compute()
    1.25
    """
    error = _difference(labels, predictions)
    return mean_of("mean_absolute_error", np.abs(error, out=error), weights)


def _squared(name: str, finish: Any, labels: Any, predictions: Any, weights: Any) -> Metric:
    error = _difference(labels, predictions)
    with np.errstate(all="ignore"):
        np.square(error, out=error)
    w = as_weights(weights, error.shape, allow_negative=True)
    return sums_of(name, finish, total(error, w), weight_of(error, w))


def mean_squared_error(labels: Any, predictions: Any, weights: Any = None) -> Metric:
    """Weighted mean of `(predictions - labels) ** 2`.

    Arguments and result as for `mean_absolute_error`.

    >>> from jaxspec import metrics
    >>> metrics.mean_squared_error(labels=[1.0, 2.0], predictions=[2.0, 4.0]).compute()
    2.5
    """
    return _squared("mean_squared_error", mean_or_zero, labels, predictions, weights)


def root_mean_squared_error(labels: Any, predictions: Any, weights: Any = None) -> Metric:
    """Square root of `mean_squared_error`, taken once over all examples.

    Arguments and result as for `mean_absolute_error`. NaN if negative weights make the mean negative.

    >>> from jaxspec import metrics
    >>> metrics.root_mean_squared_error(labels=[0.0, 0.0], predictions=[1.0, 7.0]).compute()
    5.0
    """
    return _squared("root_mean_squared_error", _root, labels, predictions, weights)


def _root(total: Floats, weight: Floats) -> Array:
    return np.asarray(np.sqrt(mean_or_zero(total, weight)))


def mean_relative_error(labels: Any, predictions: Any, normalizer: Any, weights: Any = None) -> Metric:
    """Weighted mean of `|labels - predictions| / normalizer`.

    Args:
      labels, predictions: as for `mean_absolute_error`.
      normalizer: numbers, the same shape as `predictions`. An entry of 0 makes the error of that entry 0 (it
        still counts), a negative entry makes it negative.
      weights: as for `metrics.mean`.

    Returns:
      A value that computes a float, 0.0 where the total weight is 0 or below.

    >>> from jaxspec import metrics
    >>> metrics.mean_relative_error([1.0, 2.0], [3.0, 3.0], normalizer=[4.0, 0.0]).compute()
    0.25
    """
    error = _difference(labels, predictions)
    np.abs(error, out=error)
    scale = as_array("normalizer", normalizer)
    error, scale = same_shape(("predictions", error), ("normalizer", scale))
    with np.errstate(all="ignore"):
        return mean_of("mean_relative_error", ratio_or_zero(error, scale.astype(np.float64)), weights)


def mean_cosine_distance(labels: Any, predictions: Any, dim: int, weights: Any = None) -> Metric:
    """One minus the weighted mean of the dot products along axis `dim`.

    It is the cosine distance of vectors of length 1; nothing is normalised here.

    Args:
      labels: numbers of any shape.
      predictions: the same shape.
      dim: the axis of the vectors; it may be negative.
      weights: as for `metrics.mean`, against the shape of the dot products with axis `dim` kept at size 1:
        `[B]` or `[B, 1]` for labels `[B, D]` and `dim=1`.

    Returns:
      A value that computes a float, 1.0 where the total weight is 0 or below.

    >>> from jaxspec import metrics
    >>> metrics.mean_cosine_distance([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]], dim=1).compute()
    0.5
    """
    a, b = same_shape(("labels", as_array("labels", labels)), ("predictions", as_array("predictions", predictions)))
    axis = operator.index(dim)
    if not -a.ndim <= axis < a.ndim:
        raise ValueError(f"dim is {dim}; expected an axis of labels, which have shape {a.shape}")
    with np.errstate(all="ignore"):
        products = np.multiply(a, b, dtype=np.float64).sum(axis=axis, keepdims=True)
    w = as_weights(weights, products.shape, allow_negative=True)
    return sums_of("mean_cosine_distance", _distance, total(products, w), weight_of(products, w), dim=axis % a.ndim)


def _distance(total: Floats, weight: Floats, dim: int) -> Array:
    return 1.0 - mean_or_zero(total, weight)
