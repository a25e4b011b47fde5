"""Weighted means of what a batch holds: values, tensors, shares of entries."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxspec._src.metrics.inputs import as_array, as_weights, same_shape, total, weight_of, with_rows
from jaxspec._src.metrics.metric import Array, Floats, Metric, sums_of


def mean_or_zero(total: Floats, weight: Floats) -> Array:
    """The mean, 0 where the weight is not positive: TensorFlow's choice for the mean of nothing."""
    return np.where(weight <= 0, 0.0, total / weight)


def mean_of(name: str, values: Array, weights: Any) -> Metric:
    """The mean of `values` as the value of metric `name`."""
    w = as_weights(weights, values.shape, allow_negative=True)
    return sums_of(name, mean_or_zero, total(values, w), weight_of(values, w))


def mean(values: Any, weights: Any = None) -> Metric:
    """Weighted mean of all entries: `sum(values * weights) / sum(weights)`.

    Args:
      values: numbers or booleans of any shape; a scalar counts as one entry.
      weights: None (all 1; for a scalar tensor of each shard the rows behind its entries), a scalar, or a shape that broadcasts to that of `values` without enlarging it;
        `[B]` for values `[B, D]` is a weight a row. Negative weights are allowed.

    Returns:
      A value that computes a float: 0.0 where the total weight is 0 or below. NaN stays NaN even with a
        weight of 0
      (as long as the total weight is positive).

    Unlike TensorFlow it adds up in float64.

    >>> from jaxspec import metrics
    >>> metrics.mean([1.0, 2.0, 6.0], weights=[1, 1, 2]).compute()
    3.75
    """
    return mean_of("mean", *with_rows("values", values, weights))


def mean_tensor(values: Any, weights: Any = None) -> Metric:
    """Weighted mean over batches, entry by entry: each batch is one sample of a tensor.

    Args:
      values: numbers of any shape, the same in every batch. There is no batch axis.
      weights: as for `mean`.

    Returns:
      A value that computes an array shaped like `values`: 0.0 where the total weight is 0 or below.

    The shape is part of the state: an evaluation whose last batch is ragged needs values without the batch
      in their
    shape, in TensorFlow as here.

    >>> from jaxspec import metrics
    >>> metrics.mean_tensor([1.0, 2.0]).merge(metrics.mean_tensor([3.0, 6.0])).compute().tolist()
    [2.0, 4.0]
    """
    array = as_array("values", values)
    w = as_weights(weights, array.shape, allow_negative=True)
    if w is None:
        return sums_of("mean_tensor", mean_or_zero, array, np.ones(array.shape))
    with np.errstate(all="ignore"):
        return sums_of("mean_tensor", mean_or_zero, np.multiply(array, w, dtype=np.float64), w)


def percentage_below(values: Any, threshold: float, weights: Any = None) -> Metric:
    """Weighted share of entries with `values < threshold`, between 0 and 1 (a share, whatever the name says).

    Args:
      values: numbers of any shape.
      threshold: a number, rounded to the dtype of `values` if these are floating: 0.1 is float32(0.1) for
        float32 values, so an equal entry is not below it. Part of the configuration.
      weights: as for `mean`.

    Returns:
      A value that computes a float, 0.0 where the total weight is 0 or below.

    >>> from jaxspec import metrics
    >>> metrics.percentage_below([0.1, 0.5, 0.9, 0.2], threshold=0.5).compute()
    0.5
    """
    array, weights = with_rows("values", values, weights)
    if np.ndim(threshold) != 0:
        raise ValueError(f"threshold has shape {np.shape(threshold)}; expected one number")
    limit = float(threshold)
    given = np.asarray(values).dtype
    if jnp.issubdtype(given, np.floating):
        with np.errstate(over="ignore"):  # beyond the largest float16 everything finite is below
            limit_here = float(np.asarray(limit).astype(given))
    else:
        limit_here = limit
    below = array < limit_here
    w = as_weights(weights, array.shape, allow_negative=True)
    return sums_of("percentage_below", _share, total(below, w), weight_of(below, w), threshold=limit)


def _share(total: Floats, weight: Floats, threshold: float) -> Array:
    return mean_or_zero(total, weight)


def accuracy(labels: Any, predictions: Any, weights: Any = None) -> Metric:
    """Weighted share of entries with `predictions == labels`.

    Args:
      labels: classes of any shape: integers, booleans, floats or strings.
      predictions: the same shape, up to a last axis of size 1; classes, not scores (`np.argmax(logits,
        -1)`). Numbers of another dtype are cast to the dtype of `labels`.
      weights: as for `mean`; `[B, 1]` for labels `[B]` is a weight an example.

    Returns:
      A value that computes a float, 0.0 where the total weight is 0 or below.

    >>> from jaxspec import metrics
    >>> metrics.accuracy(labels=[0, 1, 2, 3], predictions=[0, 1, 2, 0]).compute()
    0.75
    """
    right = _equal(as_array("labels", labels, text=True), as_array("predictions", predictions, text=True))
    w = as_weights(weights, right.shape, allow_negative=True)
    if w is None:
        return sums_of("accuracy", mean_or_zero, np.count_nonzero(right), right.size)
    return sums_of("accuracy", mean_or_zero, total(right, w), weight_of(right, w))


def _equal(labels: Array, predictions: Array) -> Array:
    labels, predictions = same_shape(("labels", labels), ("predictions", predictions))
    numbers = [a.dtype.kind in "biuf" for a in (labels, predictions)]
    if numbers[0] != numbers[1] or {labels.dtype.kind, predictions.dtype.kind} == {"S", "U"}:
        raise TypeError(
            f"labels have dtype {labels.dtype} and predictions {predictions.dtype}; "
            "expected numbers, text or bytes on both sides"
        )
    if all(numbers):
        with np.errstate(invalid="ignore"):
            predictions = predictions.astype(labels.dtype, copy=False)
    return np.asarray(labels == predictions, bool)
