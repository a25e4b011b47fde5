"""Numbers read off a whole curve of thresholds: the area under it, or one point of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxspec._src.metrics.inputs import as_count, ratio_or_zero
from jaxspec._src.metrics.metric import Array, Floats, Metric, sums_of
from jaxspec._src.metrics.thresholds import Counts, as_thresholds, counts_at, histogram

_MARGIN = 1e-7  # how far the outermost thresholds lie outside (0, 1)
_METHODS = ("trapezoidal", "careful_interpolation", "minoring", "majoring")


def _evenly(num_thresholds: Any) -> tuple[float, ...]:
    """The thresholds strictly between 0 and 1 that divide it evenly."""
    count = as_count("num_thresholds", num_thresholds, least=2)
    return tuple((i + 1) / (count - 1) for i in range(count - 2))


def auc(
    labels: Any,
    predictions: Any,
    weights: Any = None,
    num_thresholds: int = 200,
    curve: str = "ROC",
    summation_method: str = "trapezoidal",
    thresholds: Any = None,
) -> Metric:
    """Area under the ROC or the precision-recall curve, approximated at fixed thresholds.

    Args:
      labels: any shape, cast to bool.
      predictions: probabilities in [0, 1], the same shape as `labels` up to a last axis of size 1.
      weights: None (all 1), a scalar, or a shape that broadcasts to that of `predictions` without enlarging
        it; >= 0.
      num_thresholds: at least 2. They are `i / (num_thresholds - 1)`, the first and the last pushed 1e-7
        outwards. Ignored with `thresholds`.
      curve: "ROC" (recall against the share of false labels taken for true) or "PR" (precision against
        recall).
      summation_method: "trapezoidal"; "minoring" or "majoring" (the lower or upper step at each interval:
        bounds); "careful_interpolation" (PR only: follows the curve between two thresholds as Davis and
        Goadrich derive it; with ROC the same as "trapezoidal"). Prefer it for PR, where a trapezoid
        overestimates.
      thresholds: the thresholds to use instead, in any order, each in [0, 1]; -1e-7 and 1 + 1e-7 are added.

    Returns:
      A value that computes a float. With `rec = (tp + 1e-6) / (tp + fn + 1e-6)`, `fpr = fp / (fp + tn +
      1e-6)` and `prec = (tp + 1e-6) / (tp + fp + 1e-6)` it is the sum over neighbouring thresholds of the
      step in x (fpr or rec) times the mean, lesser or greater of both y (rec or prec).

      These epsilons decide what is 0 / 0, in TensorFlow and so here: 0.0 before the first example;
      without positives 1.0 for ROC and 0.0 for PR; without negatives 0.0 for ROC and 1.0 for PR.

    A trapezoid counts half of the pairs of a true and a false label that fall between the same two
    thresholds, so for ROC the error against the exact area is at most half the share of such pairs. For the
    exact area use `metrics.collect(sklearn.metrics.roc_auc_score, y_true=labels, y_score=predictions)`.

    Unlike TensorFlow it refuses `thresholds` outside [0, 1], and counts exactly past 2**24.

    >>> from jaxspec import metrics
    >>> round(metrics.auc(labels=[0, 0, 1, 1], predictions=[0.1, 0.4, 0.35, 0.8]).compute(), 5)
    0.75
    """
    if curve not in ("ROC", "PR"):
        raise ValueError(f"curve is {curve!r}; expected 'ROC' or 'PR'")
    if summation_method not in _METHODS:
        raise ValueError(f"summation_method is {summation_method!r}; expected one of {', '.join(_METHODS)}")
    if thresholds is None:
        inner = _evenly(num_thresholds)
    else:
        inner = tuple(sorted(as_thresholds(thresholds)))
        if inner[0] < 0 or inner[-1] > 1:
            raise ValueError(f"thresholds go from {inner[0]} to {inner[-1]}; expected numbers in [0, 1]")
    limits = (-_MARGIN, *inner, 1 + _MARGIN)
    bins = histogram(labels, predictions, weights, limits)
    return sums_of("auc", _area, bins, thresholds=limits, curve=curve, summation_method=summation_method)


def _area(bins: Floats, thresholds: tuple[float, ...], curve: str, summation_method: str) -> Array:
    counts = counts_at(bins, thresholds)
    if curve == "PR" and summation_method == "careful_interpolation":
        return _interpolated_area(counts)
    epsilon = 1e-6
    tp, fp, tn, fn = counts
    rec = (tp + epsilon) / (tp + fn + epsilon)
    if curve == "ROC":
        x, y = fp / (fp + tn + epsilon), rec
    else:
        x, y = rec, (tp + epsilon) / (tp + fp + epsilon)
    if summation_method == "minoring":
        height = np.minimum(y[:-1], y[1:])
    elif summation_method == "majoring":
        height = np.maximum(y[:-1], y[1:])
    else:
        height = (y[:-1] + y[1:]) / 2
    return np.asarray(np.sum((x[:-1] - x[1:]) * height))


def _interpolated_area(counts: Counts) -> Array:
    """Area under the PR curve if true positives grow linearly with positives between two thresholds.

    There `tp = slope * p + intercept`, so precision is `slope + intercept / p`, whose integral over recall
    has the logarithm.
    """
    tp, fp, _, fn = counts
    p = tp + fp
    step = tp[:-1] - tp[1:]
    slope = ratio_or_zero(step, p[:-1] - p[1:])
    intercept = tp[1:] - slope * p[1:]
    both = (p[:-1] > 0) & (p[1:] > 0)
    growth = np.where(both, p[:-1], 1.0) / np.where(both, p[1:], 1.0)
    return np.asarray(np.sum(ratio_or_zero(slope * (step + intercept * np.log(growth)), tp[1:] + fn[1:])))


def _as_share(name: str, value: Any) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; expected a number in [0, 1]")
    return float(value)


def sensitivity_at_specificity(
    labels: Any, predictions: Any, specificity: float, weights: Any = None, num_thresholds: int = 200
) -> Metric:
    """Sensitivity (recall) at the threshold whose specificity is nearest to the one asked for.

    Args:
      labels: any shape, cast to bool.
      predictions: probabilities in [0, 1], the same shape as `labels` up to a last axis of size 1.
      specificity: in [0, 1]: the wanted `tn / (tn + fp + 1e-7)`.
      weights: None (all 1), a scalar, or a shape that broadcasts to that of `predictions` without enlarging
        it; >= 0.
      num_thresholds: at least 2; the thresholds are those of `auc`.

    Returns:
      A value that computes a float, `tp / (tp + fn + 1e-7)` at that threshold, the lowest of equally near
      ones; 0.0 without positives.

    Distances are compared in float32, as in TensorFlow: that decides which thresholds are equally near.

    >>> from jaxspec import metrics
    >>> value = metrics.sensitivity_at_specificity([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], specificity=1.0)
    >>> round(value.compute(), 6)
    0.5
    """
    wanted = _as_share("specificity", specificity)
    limits = (-_MARGIN, *_evenly(num_thresholds), 1 + _MARGIN)
    bins = histogram(labels, predictions, weights, limits)
    return sums_of("sensitivity_at_specificity", _sensitivity, bins, thresholds=limits, specificity=wanted)


def specificity_at_sensitivity(
    labels: Any, predictions: Any, sensitivity: float, weights: Any = None, num_thresholds: int = 200
) -> Metric:
    """Specificity at the threshold whose sensitivity (recall) is nearest to the one asked for.

    Args:
      labels: any shape, cast to bool.
      predictions: probabilities in [0, 1], the same shape as `labels` up to a last axis of size 1.
      sensitivity: in [0, 1]: the wanted `tp / (tp + fn + 1e-7)`.
      weights: None (all 1), a scalar, or a shape that broadcasts to that of `predictions` without enlarging
        it; >= 0.
      num_thresholds: at least 2. The thresholds are those of `auc`, but for the last, which is `1 - 1e-7`: a
        prediction of 1 is positive at all of them.

    Returns:
      A value that computes a float, `tn / (tn + fp + 1e-7)` at that threshold, the highest of equally near
      ones; 0.0 without negatives.

    Distances are compared in float32, as in TensorFlow: that decides which thresholds are equally near.

    >>> from jaxspec import metrics
    >>> value = metrics.specificity_at_sensitivity([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], sensitivity=1.0)
    >>> round(value.compute(), 6)
    0.5
    """
    wanted = _as_share("sensitivity", sensitivity)
    limits = (-_MARGIN, *_evenly(num_thresholds), 1 - _MARGIN)
    bins = histogram(labels, predictions, weights, limits)
    return sums_of("specificity_at_sensitivity", _specificity, bins, thresholds=limits, sensitivity=wanted)


def _distances(part: Floats, rest: Floats, wanted: float) -> Array:
    a, b = part.astype(np.float32), rest.astype(np.float32)
    return np.asarray(np.abs(a / (a + b + np.float32(_MARGIN)) - np.float32(wanted)))


def _sensitivity(bins: Floats, thresholds: tuple[float, ...], specificity: float) -> np.float64:
    tp, fp, tn, fn = counts_at(bins, thresholds)
    at = np.argmin(_distances(tn, fp, specificity))
    return np.float64(tp[at] / (tp[at] + fn[at] + _MARGIN))


def _specificity(bins: Floats, thresholds: tuple[float, ...], sensitivity: float) -> np.float64:
    tp, fp, tn, fn = counts_at(bins, thresholds)
    at = len(thresholds) - 1 - np.argmin(_distances(tp, fn, sensitivity)[::-1])
    return np.float64(tn[at] / (tn[at] + fp[at] + _MARGIN))
