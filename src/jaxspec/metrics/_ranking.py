"""Where the labels of each row stand among its scores, without sorting the scores.

A label is in the top k exactly if fewer than k scores beat its own. So one comparison of the row with the
label's score, and a count, replace the search for the top k; only the k best-scoring labels of a row need it.
"""

from __future__ import annotations

import numpy as np

from ._metric import Array

# Scores looked at together: about what the second-level cache holds.
_BLOCK = 1 << 18
_HEAD = 128


def best_ranks(ids: Array, present: Array, scores: Array, k: int) -> Array:
    """Ranks of the best labels of each row, best first: `[N, min(L, k)]` integers.

    Rank 0 is the highest score; equal scores rank by index, the lower one first. A label that is not
    present, is no index of `scores` or has the score NaN gets rank C. Ranks of k and more are not exact.

    Args:
      ids: `[N, L]` int64, each row ascending.
      present: `[N, L]` bool: labels to look at. No two present labels of a row may be equal.
      scores: `[N, C]` numbers.
      k: at most C.
    """
    rows, classes = scores.shape
    ranks = np.full((rows, min(ids.shape[1], k)), classes, np.int64)
    if ranks.size == 0:
        return ranks
    inside = present & (ids >= 0) & (ids < classes)
    own = np.take_along_axis(scores, np.where(inside, ids, 0), axis=1)
    inside &= own == own  # not NaN
    if ids.shape[1] > 1:
        # Best-scoring labels first, those to skip last (as NaN). The sort is stable and ids ascend, so ties
        # keep the lower index first.
        order = np.argsort(np.where(inside, -own.astype(np.float64), np.nan), axis=1, kind="stable")
        order = order[:, : ranks.shape[1]]
        ids, own, inside = (np.take_along_axis(a, order, axis=1) for a in (ids, own, inside))

    active = np.flatnonzero(inside[:, 0])
    height = max(1, _BLOCK // classes)
    for column in range(ranks.shape[1]):
        rank = np.empty(active.size, np.int64)
        for start in range(0, active.size, height):
            part = active[start : start + height]
            here = scores[start : start + height] if active.size == rows else scores[part]
            rank[start : start + height] = _ranks(here, own[part, column, None], ids[part, column, None], k)
        ranks[active, column] = rank
        # A later label scores no better: rows that are out of the top k, or of labels, are done.
        active = active[rank < k]
        if column + 1 < ranks.shape[1]:
            active = active[inside[active, column + 1]]
    return ranks


def _ranks(scores: Array, own: Array, ids: Array, k: int) -> Array:
    """Rank of one label a row; `own` is its score and `ids` its index, both `[N, 1]`. Not exact from k on."""
    # Few columns are enough to see most bad labels beaten k times.
    rank = _count(scores[:, :_HEAD] > own)
    rows = _select(rank < k)
    rank[rows] += _count(scores[rows, _HEAD:] > own[rows])
    rows = _select(rank < k)
    equal = _count(scores[rows] == own[rows])
    tied = np.arange(len(rank))[rows][equal > 1]
    lower = np.arange(scores.shape[1]) < ids[tied]
    rank[tied] += _count((scores[tied] == own[tied]) & lower)
    return rank


def _select(rows: Array) -> Array | slice:
    """These rows, or all of them where copying most rows would cost more than looking at all."""
    chosen = np.flatnonzero(rows)
    return slice(None) if 2 * chosen.size > rows.size else chosen


def _count(flags: Array) -> Array:
    # Sixteen bits are summed four times as fast as sixty-four.
    narrow = np.uint16 if flags.shape[1] < 1 << 16 else np.int64
    return np.asarray(flags.sum(axis=1, dtype=narrow).astype(np.int64))
