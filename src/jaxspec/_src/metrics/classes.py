"""Metrics over classes numbered from 0: the confusion matrix, and means over classes."""

import numpy as np
from numpy.typing import ArrayLike

from jaxspec._src.metrics.arguments import Weights, as_count, as_integers, as_weights, labels_and_predictions
from jaxspec._src.metrics.metric import Floats, Metric, ratio_or_zero, sums_of, the_sum
from jaxspec._src.metrics.tally import tally


def confusion_matrix(
    labels: ArrayLike, predictions: ArrayLike, num_classes: int, weights: Weights = None
) -> Metric[np.ndarray]:
    """Weighted number of examples of each class (row) that were predicted to be of each class (column).

    It is `tf.math.confusion_matrix`, added up over the evaluation. `num_classes` is required, because a batch need not
    hold every class.

    Args:
      labels: integers from 0 to `num_classes - 1`, of any shape.
      predictions: integers from 0 to `num_classes - 1`, the same shape up to a last axis of size 1.
      num_classes: at least 1.
      weights: None (all 1), a scalar, or a shape that broadcasts to that of `labels` without enlarging it; >= 0.

    Returns:
      A metric that computes a float64 array `[num_classes, num_classes]`, of zeros without examples.

    >>> from jaxspec import metrics
    >>> metrics.confusion_matrix(labels=[0, 1, 1], predictions=[0, 0, 1], num_classes=2).compute().tolist()
    [[1.0, 0.0], [1.0, 1.0]]
    """
    count = as_count("num_classes", num_classes, least=1)
    truth, guess = labels_and_predictions(as_integers("labels", labels), as_integers("predictions", predictions))
    w = as_weights(weights, truth.shape)
    cells = _check_classes("labels", truth, count) * count + _check_classes("predictions", guess, count)
    return sums_of("confusion_matrix", the_sum, tally(cells, w, (count, count)))


def mean_iou(labels: ArrayLike, predictions: ArrayLike, num_classes: int, weights: Weights = None) -> Metric[float]:
    """Mean over classes of intersection over union: `tp / (tp + fp + fn)` of each class.

    Args:
      labels: integers from 0 to `num_classes - 1`, of any shape (`[B, height, width]` for images).
      predictions: integers from 0 to `num_classes - 1`, of exactly the same shape.
      num_classes: at least 1.
      weights: None (all 1), a scalar, or a shape that broadcasts to that of `labels` without enlarging it; >= 0.

    Returns:
      A metric that computes a float. Classes that are neither in the labels nor in the predictions (or only with a
      weight of 0) are left out of the mean; 0.0 if no class is left.

    Unlike TensorFlow it takes a scalar weight, and keeps three numbers for each class instead of the whole confusion
    matrix.

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
    both = tally(truth[right], None if w is None else w.reshape(-1)[right], (count,))
    return sums_of("mean_iou", _iou, both, tally(truth, w, (count,)), tally(guess, w, (count,)))


def mean_per_class_accuracy(
    labels: ArrayLike, predictions: ArrayLike, num_classes: int, weights: Weights = None
) -> Metric[float]:
    """Mean over classes of the share of the examples of a class that were predicted correctly.

    Args:
      labels: integers from 0 to `num_classes - 1`, of any shape.
      predictions: integers, the same shape up to a last axis of size 1. A prediction that is no class counts as wrong,
        and raises no error.
      num_classes: at least 1.
      weights: None (all 1), a scalar, or a shape that broadcasts to that of `labels` without enlarging it; >= 0.

    Returns:
      A metric that computes a float. A class without labels counts as 0.0 (unlike in `mean_iou`).

    Unlike TensorFlow it takes a scalar weight.

    >>> from jaxspec import metrics
    >>> metrics.mean_per_class_accuracy([0, 0, 1, 1], [0, 0, 0, 1], num_classes=2).compute()
    0.75
    """
    count = as_count("num_classes", num_classes, least=1)
    truth, guess = labels_and_predictions(as_integers("labels", labels), as_integers("predictions", predictions))
    w = as_weights(weights, truth.shape)
    right = (truth == guess).reshape(-1)
    ids = _check_classes("labels", truth, count)
    correct = tally(ids[right], None if w is None else w.reshape(-1)[right], (count,))
    return sums_of("mean_per_class_accuracy", _mean_share, correct, tally(ids, w, (count,)))


def _iou(both: Floats, labelled: Floats, predicted: Floats) -> np.float64:
    union = labelled + predicted - both
    return np.float64(ratio_or_zero(both, union).sum() / max((union > 0).sum(), 1))


def _mean_share(correct: Floats, labelled: Floats) -> np.float64:
    return np.float64(ratio_or_zero(correct, labelled).mean())


def _check_classes(name: str, ids: np.ndarray, num_classes: int) -> np.ndarray:
    """The classes in one dimension, after a check of their range."""
    if ids.size:
        low, high = ids.min(), ids.max()
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"{name} hold classes from {low} to {high}; "
                f"expected integers from 0 to {num_classes - 1} (num_classes is {num_classes}), whatever their weight. "
                f"To leave entries out, write keep = (labels >= 0) & (labels < {num_classes}) and pass "
                f"{name}=np.where(keep, {name}, 0), weights=keep (times the weights, if there are any)"
            )
    return ids.reshape(-1)
