"""The area under a curve over many thresholds (ROC, precision-recall), and single points of such a curve."""

import functools

import numpy as np
from numpy.typing import ArrayLike

from jaxspec._src.metrics.arguments import Weights, as_count
from jaxspec._src.metrics.metric import Floats, Metric, ratio_or_zero, sums_of
from jaxspec._src.metrics.threshold_counts import Counts, as_thresholds, counts_at, histogram

_MARGIN = 1e-7  # how far the outermost thresholds lie outside of [0, 1]
_METHODS = ("trapezoidal", "careful_interpolation", "minoring", "majoring")


def auc(
    labels: ArrayLike,
    predictions: ArrayLike,
    weights: Weights = None,
    num_thresholds: int = 200,
    curve: str = "ROC",
    summation_method: str = "trapezoidal",
    thresholds: ArrayLike | None = None,
) -> Metric[float]:
    """Area under the ROC or the precision-recall curve, approximated at fixed thresholds.

    Args:
      labels: any shape, cast to bool.
      predictions: probabilities in [0, 1], the same shape as `labels` up to a last axis of size 1.
      weights: None (all 1), a scalar, or a shape that broadcasts to that of `predictions` without enlarging it; >= 0.
      num_thresholds: at least 2. The thresholds are `i / (num_thresholds - 1)`, but the first is -1e-7 and the last is
        1 + 1e-7. Ignored with `thresholds`.
      curve: "ROC" (recall over the false positive rate) or "PR" (precision over recall).
      summation_method: "trapezoidal"; "minoring" or "majoring" (a lower or an upper bound: a step at the lesser or
        the greater end of each interval); "careful_interpolation" (PR only: follows the curve between two thresholds
        as Davis and Goadrich derive it; with ROC the same as "trapezoidal"). Prefer it for PR, where trapezoids
        overestimate the area.
      thresholds: the thresholds to use instead, in any order, each in [0, 1]; -1e-7 and 1 + 1e-7 are added.

    Returns:
      A metric that computes a float. With `rec = (tp + 1e-6) / (tp + fn + 1e-6)`, `fpr = fp / (fp + tn + 1e-6)` and
      `prec = (tp + 1e-6) / (tp + fp + 1e-6)` it is the sum over neighbouring thresholds of the step in x (fpr or rec)
      times the mean, the lesser or the greater of both y (rec or prec).

      The terms 1e-6 decide what 0 / 0 is, in TensorFlow as here: 0.0 before the first example; without positives 1.0
      for ROC and 0.0 for PR; without negatives 0.0 for ROC and 1.0 for PR.

    A trapezoid counts half of the pairs of a true and a false label that lie between the same two thresholds. So for
    ROC the difference from the exact area is at most half the share of such pairs. For the exact area use
    `metrics.collect(sklearn.metrics.roc_auc_score, y_true=labels, y_score=predictions)`.

    Unlike TensorFlow it refuses `thresholds` outside [0, 1], and counts exactly above 2**24.

    >>> from jaxspec import metrics
    >>> round(metrics.auc(labels=[0, 0, 1, 1], predictions=[0.1, 0.4, 0.35, 0.8]).compute(), 5)
    0.75
    """
    if curve not in ("ROC", "PR"):
        raise ValueError(f"curve is {curve!r}; expected 'ROC' or 'PR'")
    if summation_method not in _METHODS:
        raise ValueError(f"summation_method is {summation_method!r}; expected one of {', '.join(_METHODS)}")
    if thresholds is None:
        limits = _even_thresholds(as_count("num_thresholds", num_thresholds, least=2))
    else:
        inner = tuple(sorted(as_thresholds(thresholds)))
        if inner[0] < 0 or inner[-1] > 1:
            raise ValueError(f"thresholds go from {inner[0]} to {inner[-1]}; expected numbers in [0, 1]")
        limits = (-_MARGIN, *inner, 1 + _MARGIN)
    bins = histogram(labels, predictions, weights, limits)
    return sums_of("auc", _area, bins, thresholds=limits, curve=curve, summation_method=summation_method)


def sensitivity_at_specificity(
    labels: ArrayLike, predictions: ArrayLike, specificity: float, weights: Weights = None, num_thresholds: int = 200
) -> Metric[float]:
    """Sensitivity (recall) at the threshold whose specificity is nearest to the given one.

    Args:
      labels: any shape, cast to bool.
      predictions: probabilities in [0, 1], the same shape as `labels` up to a last axis of size 1.
      specificity: in [0, 1]: the desired `tn / (tn + fp + 1e-7)`.
      weights: None (all 1), a scalar, or a shape that broadcasts to that of `predictions` without enlarging it; >= 0.
      num_thresholds: at least 2; the thresholds are those of `auc`.

    Returns:
      A metric that computes a float, `tp / (tp + fn + 1e-7)` at that threshold, which is the lowest of equally near
      ones; 0.0 without positives.

    Distances are compared in float32, as in TensorFlow: that decides which thresholds are equally near.

    >>> from jaxspec import metrics
    >>> value = metrics.sensitivity_at_specificity([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], specificity=1.0)
    >>> round(value.compute(), 6)
    0.5
    """
    specificity = _as_share("specificity", specificity)
    limits = _even_thresholds(as_count("num_thresholds", num_thresholds, least=2))
    bins = histogram(labels, predictions, weights, limits)
    return sums_of("sensitivity_at_specificity", _sensitivity, bins, thresholds=limits, specificity=specificity)


def specificity_at_sensitivity(
    labels: ArrayLike, predictions: ArrayLike, sensitivity: float, weights: Weights = None, num_thresholds: int = 200
) -> Metric[float]:
    """Specificity at the threshold whose sensitivity (recall) is nearest to the given one.

    Args:
      labels: any shape, cast to bool.
      predictions: probabilities in [0, 1], the same shape as `labels` up to a last axis of size 1.
      sensitivity: in [0, 1]: the desired `tp / (tp + fn + 1e-7)`.
      weights: None (all 1), a scalar, or a shape that broadcasts to that of `predictions` without enlarging it; >= 0.
      num_thresholds: at least 2. The thresholds are those of `auc`, except that the last is `1 - 1e-7`: a prediction
        of 1 is positive at all of them.

    Returns:
      A metric that computes a float, `tn / (tn + fp + 1e-7)` at that threshold, which is the highest of equally near
      ones; 0.0 without negatives.

    Distances are compared in float32, as in TensorFlow: that decides which thresholds are equally near.

    >>> from jaxspec import metrics
    >>> value = metrics.specificity_at_sensitivity([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], sensitivity=1.0)
    >>> round(value.compute(), 6)
    0.5
    """
    sensitivity = _as_share("sensitivity", sensitivity)
    limits = _even_thresholds(as_count("num_thresholds", num_thresholds, least=2), last=1 - _MARGIN)
    bins = histogram(labels, predictions, weights, limits)
    return sums_of("specificity_at_sensitivity", _specificity, bins, thresholds=limits, sensitivity=sensitivity)


# Cached: the same thresholds are used at every batch, and equal objects are compared at once.
@functools.lru_cache
def _even_thresholds(count: int, last: float = 1 + _MARGIN) -> tuple[float, ...]:
    """`count` thresholds that divide the range from 0 to 1 evenly, but for the first, -1e-7, and the last."""
    return (-_MARGIN, *((i + 1) / (count - 1) for i in range(count - 2)), last)


def _area(bins: Floats, thresholds: tuple[float, ...], curve: str, summation_method: str) -> np.ndarray:
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


def _interpolated_area(counts: Counts) -> np.ndarray:
    """Area under the PR curve if, between two thresholds, true positives grow linearly with positives.

    There `tp = slope * p + intercept`, so precision is `slope + intercept / p`. The logarithm comes from its integral
    over recall.
    """
    tp, fp, _, fn = counts
    p = tp + fp
    step = tp[:-1] - tp[1:]
    slope = ratio_or_zero(step, p[:-1] - p[1:])
    intercept = tp[1:] - slope * p[1:]
    both = (p[:-1] > 0) & (p[1:] > 0)
    growth = np.where(both, p[:-1], 1.0) / np.where(both, p[1:], 1.0)
    return np.asarray(np.sum(ratio_or_zero(slope * (step + intercept * np.log(growth)), tp[1:] + fn[1:])))


def _as_share(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; expected a number in [0, 1]")
    return float(value)


def _distances(part: Floats, rest: Floats, target: float) -> np.ndarray:
    a, b = part.astype(np.float32), rest.astype(np.float32)
    return np.asarray(np.abs(a / (a + b + np.float32(_MARGIN)) - np.float32(target)))


def _sensitivity(bins: Floats, thresholds: tuple[float, ...], specificity: float) -> np.float64:
    tp, fp, tn, fn = counts_at(bins, thresholds)
    at = np.argmin(_distances(tn, fp, specificity))
    return np.float64(tp[at] / (tp[at] + fn[at] + _MARGIN))


def _specificity(bins: Floats, thresholds: tuple[float, ...], sensitivity: float) -> np.float64:
    tp, fp, tn, fn = counts_at(bins, thresholds)
    at = len(thresholds) - 1 - np.argmin(_distances(tp, fn, sensitivity)[::-1])
    return np.float64(tn[at] / (tn[at] + fp[at] + _MARGIN))
