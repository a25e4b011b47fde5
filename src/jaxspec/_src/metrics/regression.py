"""Means of an error: absolute, squared, relative, and the cosine distance."""

import operator

import numpy as np
from numpy.typing import ArrayLike

from jaxspec._src.metrics.arguments import Weights, as_array, labels_and_predictions, same_shape
from jaxspec._src.metrics.metric import Floats, Metric, mean_of, mean_or_zero, ratio_or_zero


def mean_absolute_error(labels: ArrayLike, predictions: ArrayLike, weights: Weights = None) -> Metric[float]:
    """Weighted mean of `|predictions - labels|`.

    Args:
      labels: numbers of any shape.
      predictions: numbers of the same shape, up to a last axis of size 1 (`[B, 1]` against `[B]` is squeezed, not
        broadcast).
      weights: as for `metrics.mean`.

    Returns:
      A metric that computes a float, 0.0 if the total weight is 0 or below.

    >>> from jaxspec import metrics
    >>> metrics.mean_absolute_error(labels=[1.0, 2.0], predictions=[1.5, 4.0]).compute()
    1.25
    """
    return mean_of("mean_absolute_error", _error(np.abs, labels, predictions), weights)


def mean_squared_error(labels: ArrayLike, predictions: ArrayLike, weights: Weights = None) -> Metric[float]:
    """Weighted mean of `(predictions - labels) ** 2`.

    Arguments and result as for `mean_absolute_error`.

    >>> from jaxspec import metrics
    >>> metrics.mean_squared_error(labels=[1.0, 2.0], predictions=[2.0, 4.0]).compute()
    2.5
    """
    return mean_of("mean_squared_error", _error(np.square, labels, predictions), weights)


def root_mean_squared_error(labels: ArrayLike, predictions: ArrayLike, weights: Weights = None) -> Metric[float]:
    """Square root of `mean_squared_error`, taken once, of the mean over all examples.

    Arguments and result as for `mean_absolute_error`. It is NaN if negative weights make the mean negative.

    >>> from jaxspec import metrics
    >>> metrics.root_mean_squared_error(labels=[0.0, 0.0], predictions=[1.0, 7.0]).compute()
    5.0
    """
    return mean_of("root_mean_squared_error", _error(np.square, labels, predictions), weights, _root)


def mean_relative_error(
    labels: ArrayLike, predictions: ArrayLike, normalizer: ArrayLike, weights: Weights = None
) -> Metric[float]:
    """Weighted mean of `|labels - predictions| / normalizer`.

    Args:
      labels, predictions: as for `mean_absolute_error`.
      normalizer: numbers of the same shape as `predictions`. Where it is 0 the error is 0 (and still counts); where it
        is negative the error is negative.
      weights: as for `metrics.mean`.

    Returns:
      A metric that computes a float, 0.0 if the total weight is 0 or below.

    >>> from jaxspec import metrics
    >>> metrics.mean_relative_error([1.0, 2.0], [3.0, 3.0], normalizer=[4.0, 0.0]).compute()
    0.25
    """
    error = _error(np.abs, labels, predictions)
    error, scale = same_shape(("predictions", error), ("normalizer", as_array("normalizer", normalizer)))
    with np.errstate(all="ignore"):
        return mean_of("mean_relative_error", ratio_or_zero(error, scale.astype(np.float64)), weights)


def mean_cosine_distance(labels: ArrayLike, predictions: ArrayLike, dim: int, weights: Weights = None) -> Metric[float]:
    """One minus the weighted mean of the dot products along axis `dim`.

    It is the cosine distance of vectors of length 1. The vectors are not normalised here.

    Args:
      labels: numbers of any shape.
      predictions: numbers of the same shape.
      dim: the axis of the vectors. It may be negative.
      weights: as for `metrics.mean`, for the dot products, whose axis `dim` has size 1: `[B]` or `[B, 1]` for labels
        `[B, D]` and `dim=1`.

    Returns:
      A metric that computes a float, 1.0 if the total weight is 0 or below.

    >>> from jaxspec import metrics
    >>> metrics.mean_cosine_distance([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]], dim=1).compute()
    0.5
    """
    a, b = labels_and_predictions(labels, predictions)
    axis = operator.index(dim)
    if not -a.ndim <= axis < a.ndim:
        raise ValueError(f"dim is {dim}; expected an axis of labels, which have shape {a.shape}")
    with np.errstate(all="ignore"):
        products = np.multiply(a, b, dtype=np.float64).sum(axis=axis, keepdims=True)
    return mean_of("mean_cosine_distance", products, weights, _distance, dim=axis % a.ndim)


def _error(of: np.ufunc, labels: ArrayLike, predictions: ArrayLike) -> np.ndarray:
    """`of(predictions - labels)`, entry by entry."""
    a, b = labels_and_predictions(labels, predictions)
    # In float64 the difference of integers does not wrap around, and the square of a float32 does not overflow.
    with np.errstate(all="ignore"):
        difference = np.asarray(np.subtract(b, a, dtype=np.float64))
        return np.asarray(of(difference, out=difference))


def _root(total: Floats, weight: Floats) -> np.ndarray:
    return np.asarray(np.sqrt(mean_or_zero(total, weight)))


def _distance(total: Floats, weight: Floats, dim: int) -> np.ndarray:
    return np.asarray(1.0 - mean_or_zero(total, weight))
