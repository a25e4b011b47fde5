"""True and false positives and negatives, precision and recall, of predictions that are true or false."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import ArrayLike

from jaxspec._src.metrics.arguments import Weights, as_weights, labels_and_predictions
from jaxspec._src.metrics.metric import Metric, mean_or_zero, sums_of, the_sum

_Condition = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Of boolean labels and predictions, entry by entry."""


def true_positives(labels: ArrayLike, predictions: ArrayLike, weights: Weights = None) -> Metric[float]:
    """Weighted number of entries where label and prediction are both true.

    Args:
      labels: any shape, cast to bool.
      predictions: the same shape, up to a last axis of size 1. They are cast to bool, not compared with 0.5: every
        non-zero number is true, also 0.25 and -1.
      weights: None (all 1), a scalar, or a shape that broadcasts to that of `labels` without enlarging it; >= 0.

    Returns:
      A metric that computes a float, 0.0 without entries. Unlike TensorFlow's float32 it counts exactly above 2**24.

    >>> from jaxspec import metrics
    >>> metrics.true_positives(labels=[1, 1, 0, 0], predictions=[1, 0, 1, 0]).compute()
    1.0
    """
    return sums_of("true_positives", the_sum, *_counts(labels, predictions, weights, np.logical_and))


def true_negatives(labels: ArrayLike, predictions: ArrayLike, weights: Weights = None) -> Metric[float]:
    """Weighted number of entries where label and prediction are both false.

    Arguments and result as for `true_positives`.

    >>> from jaxspec import metrics
    >>> metrics.true_negatives(labels=[1, 1, 0, 0], predictions=[1, 0, 1, 0], weights=[1, 1, 1, 2]).compute()
    2.0
    """
    return sums_of(
        "true_negatives", the_sum, *_counts(labels, predictions, weights, lambda truth, guess: ~(truth | guess))
    )


def false_positives(labels: ArrayLike, predictions: ArrayLike, weights: Weights = None) -> Metric[float]:
    """Weighted number of entries where the label is false and the prediction true.

    Arguments and result as for `true_positives`.

    >>> from jaxspec import metrics
    >>> metrics.false_positives(labels=[1, 1, 0, 0], predictions=[1, 0, 1, 0]).compute()
    1.0
    """
    return sums_of("false_positives", the_sum, *_counts(labels, predictions, weights, np.less))


def false_negatives(labels: ArrayLike, predictions: ArrayLike, weights: Weights = None) -> Metric[float]:
    """Weighted number of entries where the label is true and the prediction false.

    Arguments and result as for `true_positives`.

    >>> from jaxspec import metrics
    >>> metrics.false_negatives(labels=[1, 1, 0, 0], predictions=[1, 0, 1, 0]).compute()
    1.0
    """
    return sums_of("false_negatives", the_sum, *_counts(labels, predictions, weights, np.greater))


def precision(labels: ArrayLike, predictions: ArrayLike, weights: Weights = None) -> Metric[float]:
    """Share of the positive predictions that are right: `tp / (tp + fp)`.

    Arguments as for `true_positives`.

    Returns:
      A metric that computes a float, 0.0 if no prediction is positive.

    >>> from jaxspec import metrics
    >>> metrics.precision(labels=[1, 0, 0, 1], predictions=[1, 1, 0, 0]).compute()
    0.5
    """
    return sums_of(
        "precision", mean_or_zero, *_counts(labels, predictions, weights, np.logical_and, lambda truth, guess: guess)
    )


def recall(labels: ArrayLike, predictions: ArrayLike, weights: Weights = None) -> Metric[float]:
    """Share of the positive labels that were found: `tp / (tp + fn)`.

    Arguments as for `true_positives`.

    Returns:
      A metric that computes a float, 0.0 if no label is positive.

    >>> from jaxspec import metrics
    >>> metrics.recall(labels=[1, 1, 1, 1], predictions=[1, 1, 1, 0]).compute()
    0.75
    """
    return sums_of(
        "recall", mean_or_zero, *_counts(labels, predictions, weights, np.logical_and, lambda truth, guess: truth)
    )


def _counts(
    labels: ArrayLike, predictions: ArrayLike, weights: Weights, *conditions: _Condition
) -> Iterator[ArrayLike]:
    """The weighted number of entries that meet each of the conditions."""
    truth, guess = (a.astype(bool, copy=False) for a in labels_and_predictions(labels, predictions))
    w = as_weights(weights, truth.shape)
    for condition in conditions:
        met = condition(truth, guess)
        yield np.count_nonzero(met) if w is None else np.sum(w, where=met, dtype=np.float64)
