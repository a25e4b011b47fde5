"""Counts of right and wrong answers at many thresholds, from one histogram of the predictions.

Whether a prediction is positive at a threshold is decided by its place among the sorted thresholds, so a
batch is binned once (`searchsorted`), instead of being compared with every threshold in a [thresholds,
examples] table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxspec._src.metrics.inputs import as_array, as_weights, same_shape
from jaxspec._src.metrics.metric import Array, Floats, Metric, sums_of

# Examples binned at a time: temporaries stay in the cache, and small beside any batch that matters.
_CHUNK = 1 << 16


class Counts(NamedTuple):
    """True positives, false positives, true negatives, false negatives: one entry a threshold."""

    tp: Floats
    fp: Floats
    tn: Floats
    fn: Floats


def histogram(labels: Any, predictions: Any, weights: Any, thresholds: tuple[float, ...]) -> Floats:
    """Weight of the examples between neighbouring thresholds: `[2, thresholds + 1]`, row 0 for false labels.

    A prediction is positive at a threshold if it is greater, both in float32. Column i holds the predictions
    that are greater than exactly i of the thresholds.
    """
    truth = as_array("labels", labels)
    scores = as_array("predictions", predictions)
    if scores.size:
        low, high = scores.min(), scores.max()
        if not (low >= 0 and high <= 1):  # NaN included
            raise ValueError(
                f"predictions hold values from {low} to {high}; expected probabilities in [0, 1] "
                "(for logits, apply a sigmoid or softmax first)"
            )
    truth, scores = same_shape(("labels", truth), ("predictions", scores))
    w = as_weights(weights, scores.shape)

    edges = np.sort(np.asarray(thresholds, np.float32))
    width = edges.size + 1
    truth, scores = truth.reshape(-1), scores.reshape(-1)
    flat = None if w is None or np.ndim(weights) == 0 else w.reshape(-1)
    counts = np.zeros(2 * width)
    for start in range(0, scores.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        bins = np.searchsorted(edges, scores[part].astype(np.float32, copy=False))
        bins[truth[part] != 0] += width
        counts += np.bincount(bins, None if flat is None else flat[part], minlength=2 * width)
    if w is not None and flat is None and w.size:
        counts *= float(w.flat[0])
    return counts.reshape(2, width)


def counts_at(bins: Floats, thresholds: tuple[float, ...]) -> Counts:
    """The counts at each threshold, in the order in which the thresholds were given."""
    negatives, positives = np.asarray(bins)
    place = np.argsort(np.argsort(np.asarray(thresholds, np.float32), kind="stable"), kind="stable")

    # Each count is added up from its own end: differences of sums would leave residues where a count is 0.
    def above(row: Floats) -> Floats:
        return np.asarray(np.cumsum(row[::-1])[::-1][1:][place])

    def upto(row: Floats) -> Floats:
        return np.asarray(np.cumsum(row)[:-1][place])

    return Counts(tp=above(positives), fp=above(negatives), tn=upto(negatives), fn=upto(positives))


def as_thresholds(thresholds: Any) -> tuple[float, ...]:
    """`thresholds` as a tuple of floats."""
    array = as_array("thresholds", thresholds)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"thresholds is {thresholds!r}; expected a list of at least one finite number")
    return tuple(float(t) for t in array)


def _at(
    name: str, finish: Callable[..., Floats], labels: Any, predictions: Any, thresholds: Any, weights: Any
) -> Metric:
    limits = as_thresholds(thresholds)
    return sums_of(name, finish, histogram(labels, predictions, weights, limits), thresholds=limits)


def true_positives_at_thresholds(labels: Any, predictions: Any, thresholds: Any, weights: Any = None) -> Metric:
    """Weighted number of entries with a true label and `prediction > threshold`, for each threshold.

    Args:
      labels: any shape, cast to bool.
      predictions: probabilities in [0, 1], the same shape as `labels` up to a last axis of size 1.
      thresholds: a list of T numbers in any order. As in TensorFlow they may lie outside [0, 1]. Predictions
        are compared with them in float32, and an equal prediction is negative.
      weights: None (all 1), a scalar, or a shape that broadcasts to that of `predictions` without enlarging
        it; >= 0.

    Returns:
      A value that computes an array [T]. Unlike TensorFlow's float32 it counts exactly past 2**24.

    >>> from jaxspec import metrics
    >>> value = metrics.true_positives_at_thresholds([1, 1, 0], [0.9, 0.5, 0.7], thresholds=[0.0, 0.5])
    >>> value.compute().tolist()
    [2.0, 1.0]
    """
    return _at("true_positives_at_thresholds", _tp, labels, predictions, thresholds, weights)


def false_positives_at_thresholds(labels: Any, predictions: Any, thresholds: Any, weights: Any = None) -> Metric:
    """Weighted number of entries with a false label and `prediction > threshold`, for each threshold.

    Arguments and result as for `true_positives_at_thresholds`.

    >>> from jaxspec import metrics
    >>> value = metrics.false_positives_at_thresholds([1, 1, 0], [0.9, 0.5, 0.7], thresholds=[0.5, 0.8])
    >>> value.compute().tolist()
    [1.0, 0.0]
    """
    return _at("false_positives_at_thresholds", _fp, labels, predictions, thresholds, weights)


def true_negatives_at_thresholds(labels: Any, predictions: Any, thresholds: Any, weights: Any = None) -> Metric:
    """Weighted number of entries with a false label and `prediction <= threshold`, for each threshold.

    Arguments and result as for `true_positives_at_thresholds`.

    >>> from jaxspec import metrics
    >>> value = metrics.true_negatives_at_thresholds([1, 1, 0], [0.9, 0.5, 0.7], thresholds=[0.5, 0.8])
    >>> value.compute().tolist()
    [0.0, 1.0]
    """
    return _at("true_negatives_at_thresholds", _tn, labels, predictions, thresholds, weights)


def false_negatives_at_thresholds(labels: Any, predictions: Any, thresholds: Any, weights: Any = None) -> Metric:
    """Weighted number of entries with a true label and `prediction <= threshold`, for each threshold.

    Arguments and result as for `true_positives_at_thresholds`.

    >>> from jaxspec import metrics
    >>> value = metrics.false_negatives_at_thresholds([1, 1, 0], [0.9, 0.5, 0.7], thresholds=[0.5, 0.8])
    >>> value.compute().tolist()
    [1.0, 1.0]
    """
    return _at("false_negatives_at_thresholds", _fn, labels, predictions, thresholds, weights)


def precision_at_thresholds(labels: Any, predictions: Any, thresholds: Any, weights: Any = None) -> Metric:
    """Share of the predictions above each threshold that are right: `tp / (1e-7 + tp + fp)`.

    Arguments as for `true_positives_at_thresholds`.

    Returns:
      A value that computes an array [T], 0.0 where no prediction is above the threshold.

    >>> from jaxspec import metrics
    >>> value = metrics.precision_at_thresholds([1, 1, 0], [0.9, 0.5, 0.7], thresholds=[0.6, 1.0])
    >>> value.compute().round(6).tolist()
    [0.5, 0.0]
    """
    return _at("precision_at_thresholds", _precision, labels, predictions, thresholds, weights)


def recall_at_thresholds(labels: Any, predictions: Any, thresholds: Any, weights: Any = None) -> Metric:
    """Share of the true labels whose prediction is above each threshold: `tp / (1e-7 + tp + fn)`.

    Arguments as for `true_positives_at_thresholds`.

    Returns:
      A value that computes an array [T], 0.0 where no label is true.

    >>> from jaxspec import metrics
    >>> value = metrics.recall_at_thresholds([1, 1, 0], [0.9, 0.5, 0.7], thresholds=[0.6, 1.0])
    >>> value.compute().round(6).tolist()
    [0.5, 0.0]
    """
    return _at("recall_at_thresholds", _recall, labels, predictions, thresholds, weights)


def _tp(bins: Floats, thresholds: tuple[float, ...]) -> Floats:
    return counts_at(bins, thresholds).tp


def _fp(bins: Floats, thresholds: tuple[float, ...]) -> Floats:
    return counts_at(bins, thresholds).fp


def _tn(bins: Floats, thresholds: tuple[float, ...]) -> Floats:
    return counts_at(bins, thresholds).tn


def _fn(bins: Floats, thresholds: tuple[float, ...]) -> Floats:
    return counts_at(bins, thresholds).fn


def _precision(bins: Floats, thresholds: tuple[float, ...]) -> Floats:
    tp, fp, _, _ = counts_at(bins, thresholds)
    return tp / (1e-7 + tp + fp)


def _recall(bins: Floats, thresholds: tuple[float, ...]) -> Array:
    tp, _, _, fn = counts_at(bins, thresholds)
    return tp / (1e-7 + tp + fn)
