"""True and false positives and negatives, precision and recall, at each of several thresholds."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from jaxspec._src.metrics.arguments import Weights
from jaxspec._src.metrics.metric import Floats, Metric, Sums, sums_of
from jaxspec._src.metrics.threshold_counts import Counts, as_thresholds, counts_at, histogram


def true_positives_at_thresholds(
    labels: ArrayLike, predictions: ArrayLike, thresholds: ArrayLike, weights: Weights = None
) -> Metric[np.ndarray]:
    """Weighted number of entries with a true label and `prediction > threshold`, for each threshold.

    Args:
      labels: any shape, cast to bool.
      predictions: probabilities in [0, 1], the same shape as `labels` up to a last axis of size 1.
      thresholds: a list of T numbers in any order. As in TensorFlow they may lie outside [0, 1]. Predictions are
        compared with them in float32, and an equal prediction is negative.
      weights: None (all 1), a scalar, or a shape that broadcasts to that of `predictions` without enlarging it; >= 0.

    Returns:
      A metric that computes a float64 array `[T]`, in the order of `thresholds`; 0.0 without entries. Unlike
      TensorFlow's float32 it counts exactly above 2**24.

    >>> from jaxspec import metrics
    >>> value = metrics.true_positives_at_thresholds([1, 1, 0], [0.9, 0.5, 0.7], thresholds=[0.0, 0.5])
    >>> value.compute().tolist()
    [2.0, 1.0]
    """
    return _at_thresholds("true_positives", labels, predictions, thresholds, weights)


def false_positives_at_thresholds(
    labels: ArrayLike, predictions: ArrayLike, thresholds: ArrayLike, weights: Weights = None
) -> Metric[np.ndarray]:
    """Weighted number of entries with a false label and `prediction > threshold`, for each threshold.

    Arguments and result as for `true_positives_at_thresholds`.

    >>> from jaxspec import metrics
    >>> value = metrics.false_positives_at_thresholds([1, 1, 0], [0.9, 0.5, 0.7], thresholds=[0.5, 0.8])
    >>> value.compute().tolist()
    [1.0, 0.0]
    """
    return _at_thresholds("false_positives", labels, predictions, thresholds, weights)


def true_negatives_at_thresholds(
    labels: ArrayLike, predictions: ArrayLike, thresholds: ArrayLike, weights: Weights = None
) -> Metric[np.ndarray]:
    """Weighted number of entries with a false label and `prediction <= threshold`, for each threshold.

    Arguments and result as for `true_positives_at_thresholds`.

    >>> from jaxspec import metrics
    >>> value = metrics.true_negatives_at_thresholds([1, 1, 0], [0.9, 0.5, 0.7], thresholds=[0.5, 0.8])
    >>> value.compute().tolist()
    [0.0, 1.0]
    """
    return _at_thresholds("true_negatives", labels, predictions, thresholds, weights)


def false_negatives_at_thresholds(
    labels: ArrayLike, predictions: ArrayLike, thresholds: ArrayLike, weights: Weights = None
) -> Metric[np.ndarray]:
    """Weighted number of entries with a true label and `prediction <= threshold`, for each threshold.

    Arguments and result as for `true_positives_at_thresholds`.

    >>> from jaxspec import metrics
    >>> value = metrics.false_negatives_at_thresholds([1, 1, 0], [0.9, 0.5, 0.7], thresholds=[0.5, 0.8])
    >>> value.compute().tolist()
    [1.0, 1.0]
    """
    return _at_thresholds("false_negatives", labels, predictions, thresholds, weights)


def precision_at_thresholds(
    labels: ArrayLike, predictions: ArrayLike, thresholds: ArrayLike, weights: Weights = None
) -> Metric[np.ndarray]:
    """Share of the predictions above each threshold that are right: `tp / (1e-7 + tp + fp)`.

    Arguments as for `true_positives_at_thresholds`.

    Returns:
      A metric that computes a float64 array `[T]`, 0.0 where no prediction is above the threshold.

    >>> from jaxspec import metrics
    >>> value = metrics.precision_at_thresholds([1, 1, 0], [0.9, 0.5, 0.7], thresholds=[0.6, 1.0])
    >>> value.compute().round(6).tolist()
    [0.5, 0.0]
    """
    return _at_thresholds("precision", labels, predictions, thresholds, weights)


def recall_at_thresholds(
    labels: ArrayLike, predictions: ArrayLike, thresholds: ArrayLike, weights: Weights = None
) -> Metric[np.ndarray]:
    """Share of the true labels whose prediction is above each threshold: `tp / (1e-7 + tp + fn)`.

    Arguments as for `true_positives_at_thresholds`.

    Returns:
      A metric that computes a float64 array `[T]`, 0.0 if no label is true.

    >>> from jaxspec import metrics
    >>> value = metrics.recall_at_thresholds([1, 1, 0], [0.9, 0.5, 0.7], thresholds=[0.6, 1.0])
    >>> value.compute().round(6).tolist()
    [0.5, 0.0]
    """
    return _at_thresholds("recall", labels, predictions, thresholds, weights)


_RESULTS: dict[str, Callable[[Counts], Floats]] = {
    "true_positives": lambda counts: counts.tp,
    "false_positives": lambda counts: counts.fp,
    "true_negatives": lambda counts: counts.tn,
    "false_negatives": lambda counts: counts.fn,
    "precision": lambda counts: counts.tp / (1e-7 + counts.tp + counts.fp),
    "recall": lambda counts: counts.tp / (1e-7 + counts.tp + counts.fn),
}


def _at_thresholds(
    key: str, labels: ArrayLike, predictions: ArrayLike, thresholds: ArrayLike, weights: Weights
) -> Sums:
    limits = as_thresholds(thresholds)
    bins = histogram(labels, predictions, weights, limits)
    return sums_of(f"{key}_at_thresholds", _result, bins, thresholds=limits, key=key)


def _result(bins: Floats, thresholds: tuple[float, ...], key: str) -> Floats:
    return _RESULTS[key](counts_at(bins, thresholds))
