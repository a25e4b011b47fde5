"""Counts of right and wrong yes-or-no answers, and the two ratios made of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxspec._src.metrics.inputs import as_array, as_weights, same_shape
from jaxspec._src.metrics.mean import mean_or_zero
from jaxspec._src.metrics.metric import Array, Floats, Metric, sums_of


def _answers(labels: Any, predictions: Any, weights: Any) -> tuple[Array, Array, Callable[[Array], float]]:
    """Labels and predictions as booleans, and what counts where a condition holds."""
    truth, guess = same_shape(
        ("labels", as_array("labels", labels).astype(bool, copy=False)),
        ("predictions", as_array("predictions", predictions).astype(bool, copy=False)),
    )
    w = as_weights(weights, truth.shape)
    if w is None:
        return truth, guess, np.count_nonzero
    return truth, guess, lambda where: np.sum(w, where=where, dtype=np.float64)


def _itself(count: Floats) -> Floats:
    return count


def true_positives(labels: Any, predictions: Any, weights: Any = None) -> Metric:
    """Weighted number of entries where label and prediction are both true.

    Args:
      labels: any shape, cast to bool.
      predictions: the same shape, up to a last axis of size 1. Cast to bool, not compared with 0.5: every
        non-zero number is true, 0.25 and -1 too.
      weights: None (all 1), a scalar, or a shape that broadcasts to that of `labels` without enlarging it;
        >= 0.

    Returns:
      A value that computes a float. Unlike TensorFlow's float32 it counts exactly past 2**24.

    >>> from jaxspec import metrics
    >>> metrics.true_positives(labels=[1, 1, 0, 0], predictions=[1, 0, 1, 0]).compute()
    1.0
    """
    truth, guess, count = _answers(labels, predictions, weights)
    return sums_of("true_positives", _itself, count(truth & guess))


def true_negatives(labels: Any, predictions: Any, weights: Any = None) -> Metric:
    """Weighted number of entries where label and prediction are both false.

    Arguments and result as for `true_positives`.

    >>> from jaxspec import metrics
    >>> metrics.true_negatives(labels=[1, 1, 0, 0], predictions=[1, 0, 1, 0], weights=[1, 1, 1, 2]).compute()
    2.0
    """
    truth, guess, count = _answers(labels, predictions, weights)
    return sums_of("true_negatives", _itself, count(~(truth | guess)))


def false_positives(labels: Any, predictions: Any, weights: Any = None) -> Metric:
    """Weighted number of entries where the label is false and the prediction true.

    Arguments and result as for `true_positives`.

    >>> from jaxspec import metrics
    >>> metrics.false_positives(labels=[1, 1, 0, 0], predictions=[1, 0, 1, 0]).compute()
    1.0
    """
    truth, guess, count = _answers(labels, predictions, weights)
    return sums_of("false_positives", _itself, count(guess > truth))


def false_negatives(labels: Any, predictions: Any, weights: Any = None) -> Metric:
    """Weighted number of entries where the label is true and the prediction false.

    Arguments and result as for `true_positives`.

    >>> from jaxspec import metrics
    >>> metrics.false_negatives(labels=[1, 1, 0, 0], predictions=[1, 0, 1, 0]).compute()
    1.0
    """
    truth, guess, count = _answers(labels, predictions, weights)
    return sums_of("false_negatives", _itself, count(truth > guess))


def precision(labels: Any, predictions: Any, weights: Any = None) -> Metric:
    """Share of the positive predictions that are right: `tp / (tp + fp)`.

    Arguments as for `true_positives`.

    Returns:
      A value that computes a float, 0.0 where nothing was predicted positive.

    >>> from jaxspec import metrics
    >>> metrics.precision(labels=[1, 0, 0, 1], predictions=[1, 1, 0, 0]).compute()
    0.5
    """
    truth, guess, count = _answers(labels, predictions, weights)
    return sums_of("precision", mean_or_zero, count(truth & guess), count(guess))


def recall(labels: Any, predictions: Any, weights: Any = None) -> Metric:
    """Share of the positive labels that were found: `tp / (tp + fn)`.

    Arguments as for `true_positives`.

    Returns:
      A value that computes a float, 0.0 where no label is positive.

    >>> from jaxspec import metrics
    >>> metrics.recall(labels=[1, 1, 1, 1], predictions=[1, 1, 1, 0]).compute()
    0.75
    """
    truth, guess, count = _answers(labels, predictions, weights)
    return sums_of("recall", mean_or_zero, count(truth & guess), count(truth))
