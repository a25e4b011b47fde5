"""True and false positives and negatives at many thresholds, from one histogram.

Whether a prediction is positive at a threshold depends on its place among the sorted thresholds only. So a batch is
binned once, instead of being compared with every threshold in a table `[thresholds, examples]`.
"""

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxspec._src.metrics.arguments import Weights, as_array, as_weights, same_shape
from jaxspec._src.metrics.metric import Floats

# Examples that are binned at a time: temporaries of this size stay in the cache.
_CHUNK = 1 << 16


class Counts(NamedTuple):
    """Weighted counts, each `[T]`: one entry for each threshold."""

    tp: Floats
    fp: Floats
    tn: Floats
    fn: Floats


def as_thresholds(thresholds: ArrayLike) -> tuple[float, ...]:
    """`thresholds` as a tuple of floats."""
    array = as_array("thresholds", thresholds)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"thresholds is {thresholds!r}; expected a list of at least one finite number")
    return tuple(float(t) for t in array)


def histogram(labels: ArrayLike, predictions: ArrayLike, weights: Weights, thresholds: tuple[float, ...]) -> Floats:
    """Weight of the examples between neighbouring thresholds: `[2, T + 1]`, row 0 for false labels, row 1 for true.

    A prediction is positive at a threshold if it is greater, both in float32. Column i counts the predictions that
    are greater than exactly i of the T thresholds.
    """
    truth, scores = as_array("labels", labels), as_array("predictions", predictions)
    if scores.size:
        low, high = scores.min(), scores.max()
        if not (low >= 0 and high <= 1):  # NaN included
            raise ValueError(
                f"predictions hold values from {low} to {high}; expected probabilities in [0, 1] "
                "(for logits, apply a sigmoid or softmax first)"
            )
    truth, scores = same_shape(("labels", truth), ("predictions", scores))
    w = as_weights(weights, scores.shape)

    bins_of = _bins(thresholds)
    width = len(thresholds) + 1
    truth, scores = truth.reshape(-1), scores.reshape(-1)
    is_scalar = weights is not None and np.ndim(weights) == 0
    flat = None if w is None or is_scalar else w.reshape(-1)
    counts = np.zeros(2 * width)
    for start in range(0, scores.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        bins = bins_of(scores[part].astype(np.float32, copy=False))
        bins += np.multiply(truth[part] != 0, width, dtype=np.intp)
        counts += np.bincount(bins, None if flat is None else flat[part], minlength=2 * width)
    if w is not None and is_scalar and w.size:
        counts *= float(w.flat[0])
    return counts.reshape(2, width)


class _Bins:
    """For scores in [0, 1], how many thresholds each is greater than: `searchsorted`, about 10 times as fast.

    The range is divided into a power of two of cells, so that the cell of a score is exact. If no cell has two
    thresholds, one comparison is left for each score.

    Args:
      thresholds: in any order.
    """

    def __init__(self, thresholds: tuple[float, ...]) -> None:
        self._sorted = np.sort(np.asarray(thresholds, np.float32))
        padded = np.append(self._sorted, np.float32(np.inf))
        for cells in (1 << power for power in range(4, 13)):
            # How many thresholds are less than the lower end of each cell, and the first one that is not.
            self._less = np.searchsorted(self._sorted, np.arange(cells + 1, dtype=np.float32) / np.float32(cells))
            self._next, self._cells = padded[self._less], np.float32(cells)
            self._is_exact = bool((np.diff(self._less) <= 1).all())
            if self._is_exact:
                break

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """The counts, intp, of float32 scores."""
        if not self._is_exact:
            return np.searchsorted(self._sorted, scores)
        cells = (scores * self._cells).astype(np.intp)
        counts = self._less[cells]
        counts += scores > self._next[cells]
        return counts


# Cached: the thresholds are the same at every batch.
_bins = functools.lru_cache(_Bins)


def counts_at(bins: Floats, thresholds: tuple[float, ...]) -> Counts:
    """The counts at each threshold, in the order in which the thresholds were given."""
    negatives, positives = np.asarray(bins)
    place = np.argsort(np.argsort(np.asarray(thresholds, np.float32), kind="stable"), kind="stable")

    # Each count is added up from its own end: a difference of sums would leave a residue where the count is 0.
    def above(row: Floats) -> Floats:
        return np.asarray(np.cumsum(row[::-1])[::-1][1:][place])

    def up_to(row: Floats) -> Floats:
        return np.asarray(np.cumsum(row)[:-1][place])

    return Counts(tp=above(positives), fp=above(negatives), tn=up_to(negatives), fn=up_to(positives))
