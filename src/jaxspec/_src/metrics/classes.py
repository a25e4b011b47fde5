"""Metrics over classes numbered from 0: the confusion matrix and what is read off it."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxspec._src.metrics.inputs import as_array, as_count, as_integers, as_weights, ratio_or_zero, same_shape
from jaxspec._src.metrics.metric import Array, Floats, Metric, sums_of


def _check_classes(name: str, ids: Array, num_classes: int) -> Array:
    if ids.size:
        low, high = ids.min(), ids.max()
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"{name} hold classes from {low} to {high}; "
                f"expected integers from 0 to {num_classes - 1} (num_classes is {num_classes}), whatever their weight. To leave "
                f"entries out write keep = (labels >= 0) & (labels < {num_classes}) and pass {name}=np.where(keep, {name}, 0), "
                "weights=keep (times the weights there are)"
            )
    return ids.reshape(-1)


def _tally(ids: Array, weights: Array | None, length: int) -> Floats:
    flat = None if weights is None else weights.reshape(-1)
    return np.bincount(ids, flat, minlength=length).astype(np.float64, copy=False)


def confusion_matrix(labels: Any, predictions: Any, num_classes: int, weights: Any = None) -> Metric:
    """Weighted number of examples of each class (row) that were taken for each class (column).

    It stands for `tf.math.confusion_matrix`, added up over the evaluation; `num_classes` is needed, for a
    batch need not hold every class.

    Args:
      labels: integers from 0 to `num_classes - 1`, of any shape.
      predictions: integers from 0 to `num_classes - 1`, the same shape up to a last axis of size 1.
      num_classes: at least 1.
      weights: None (all 1), a scalar, or a shape that broadcasts to that of `labels` without enlarging it;
        >= 0.

    Returns:
      A value that computes a float64 array [num_classes, num_classes].

    >>> from jaxspec import metrics
    >>> metrics.confusion_matrix(labels=[0, 1, 1], predictions=[0, 0, 1], num_classes=2).compute().tolist()
    [[1.0, 0.0], [1.0, 1.0]]
    """
    count = as_count("num_classes", num_classes, least=1)
    truth, guess = same_shape(
        ("labels", as_integers("labels", labels)), ("predictions", as_integers("predictions", predictions))
    )
    w = as_weights(weights, truth.shape)
    cells = _check_classes("labels", truth, count) * count + _check_classes("predictions", guess, count)
    matrix = _tally(cells, w, count * count).reshape(count, count)
    return sums_of("confusion_matrix", _itself, matrix)


def _itself(matrix: Floats) -> Array:
    return np.array(matrix)


def mean_iou(labels: Any, predictions: Any, num_classes: int, weights: Any = None) -> Metric:
    """Mean over classes of intersection over union: `tp / (tp + fp + fn)` of each class.

    Args:
      labels: integers from 0 to `num_classes - 1`, of any shape (an image a row, for example).
      predictions: integers from 0 to `num_classes - 1`, of exactly the same shape.
      num_classes: at least 1.
      weights: None (all 1), a scalar, or a shape that broadcasts to that of `labels` without enlarging it;
        >= 0.

    Returns:
      A value that computes a float. Classes that are neither in the labels nor in the predictions (or only
      with a weight of 0) are left out of the mean; 0.0 where none is left.

    Unlike TensorFlow it takes a scalar weight, and keeps three numbers a class instead of the whole
    confusion matrix.

    >>> from jaxspec import metrics
    >>> round(metrics.mean_iou(labels=[0, 0, 1, 1], predictions=[0, 0, 0, 1], num_classes=5).compute(), 4)
    0.5833
    """
    count = as_count("num_classes", num_classes, least=1)
    truth, guess = as_integers("labels", labels), as_integers("predictions", predictions)
    if truth.shape != guess.shape:
        raise ValueError(
            f"labels has shape {truth.shape} and predictions has shape {guess.shape}; expected equal shapes"
        )
    w = as_weights(weights, truth.shape)
    right = (truth == guess).reshape(-1)
    truth, guess = _check_classes("labels", truth, count), _check_classes("predictions", guess, count)
    both = _tally(truth[right], None if w is None else w.reshape(-1)[right], count)
    return sums_of("mean_iou", _iou, both, _tally(truth, w, count), _tally(guess, w, count))


def _iou(both: Floats, labelled: Floats, predicted: Floats) -> Array:
    union = labelled + predicted - both
    seen = (union > 0).sum()
    return np.asarray(ratio_or_zero(both, union).sum() / max(seen, 1))


def mean_per_class_accuracy(labels: Any, predictions: Any, num_classes: int, weights: Any = None) -> Metric:
    """Mean over classes of the share of examples of the class that were predicted right.

    Args:
      labels: integers from 0 to `num_classes - 1`, of any shape.
      predictions: integers, the same shape up to a last axis of size 1. A prediction that is no class is
        wrong, and no error.
      num_classes: at least 1.
      weights: None (all 1), a scalar, or a shape that broadcasts to that of `labels` without enlarging it;
        >= 0.

    Returns:
      A value that computes a float. A class without labels counts as 0.0 (unlike in `mean_iou`).

    Unlike TensorFlow it takes a scalar weight.

    >>> from jaxspec import metrics
    >>> metrics.mean_per_class_accuracy([0, 0, 1, 1], [0, 0, 0, 1], num_classes=2).compute()
    0.75
    """
    count = as_count("num_classes", num_classes, least=1)
    truth, guess = same_shape(
        ("labels", as_integers("labels", labels)), ("predictions", as_array("predictions", predictions))
    )
    w = as_weights(weights, truth.shape)
    right = (truth == as_integers("predictions", guess)).reshape(-1)
    ids = _check_classes("labels", truth, count)
    correct = _tally(ids[right], None if w is None else w.reshape(-1)[right], count)
    return sums_of("mean_per_class_accuracy", _mean_share, correct, _tally(ids, w, count))


def _mean_share(correct: Floats, labelled: Floats) -> Array:
    return np.asarray(ratio_or_zero(correct, labelled).mean())
