"""Weighted sums and means, in float64, with TensorFlow's choice of what 0 / 0 is."""

from collections.abc import Callable, Hashable

import numpy as np
from numpy.typing import ArrayLike

from jaxspec._src.metrics.arguments import Weights, as_weights
from jaxspec._src.metrics.sums import Floats, Sums, sums_of


def mean_of(
    name: str, values: np.ndarray, weights: Weights, finish: Callable[..., ArrayLike] | None = None, **config: Hashable
) -> Sums:
    """The weighted mean of an array as metric `name`. Its sums are those of `values * weights` and of the weights.

    Args:
      finish: makes the result of both sums; None is `mean_or_zero`.
      config: as in `Sums`.
    """
    w = as_weights(weights, values.shape, allow_negative=True)
    return sums_of(name, finish or mean_or_zero, total(values, w), total_weight(values, w), **config)


def mean_or_zero(total: Floats, weight: Floats, **config: object) -> np.ndarray:
    """The mean, or 0 where the weight is not positive: TensorFlow's choice for the mean of nothing."""
    return np.where(weight <= 0, 0.0, total / weight)


def ratio_or_zero(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """`numerator / denominator`, and 0 wherever the denominator is 0."""
    return np.where(denominator == 0, 0.0, np.divide(numerator, np.where(denominator == 0, 1.0, denominator)))


def total(values: np.ndarray, weights: np.ndarray | None) -> np.float64:
    """Sum of `values` times `weights` (None: all 1)."""
    with np.errstate(all="ignore"):  # inf * 0 and inf - inf are NaN, without a warning
        if weights is not None:
            return np.float64(np.multiply(values, weights, dtype=np.float64).sum())
        return np.float64(np.count_nonzero(values) if values.dtype == bool else values.sum(dtype=np.float64))


def total_weight(values: np.ndarray, weights: np.ndarray | None) -> np.float64:
    """Sum of the weights; None: the number of entries of `values`."""
    return np.float64(values.size if weights is None else weights.sum(dtype=np.float64))
