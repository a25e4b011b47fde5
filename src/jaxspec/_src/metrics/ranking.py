"""The ranks of the labels of each row among its scores, without sorting the scores.

A label is among the top k exactly if fewer than k scores are higher than its own. So one comparison of the row with the
label's score, and a count, replace the search for the top k; only the k best-scored labels of a row need it.
"""

import numpy as np

# Scores that are compared at a time: 2 MB of float32 stay in a cache between the two comparisons.
_BLOCK = 1 << 19


def best_ranks(ids: np.ndarray, present: np.ndarray, scores: np.ndarray, k: int) -> np.ndarray:
    """Ranks of the best labels of each row, best first: `[N, min(L, k)]` integers.

    Rank 0 is the highest score; of equal scores the one with the lower index comes first. A label that is not present,
    or is no index of `scores`, or has the score NaN, gets rank C. Ranks of k and more are not exact.

    Args:
      ids: `[N, L]` int64, each row ascending.
      present: `[N, L]` bool: the labels that count. No two present labels of a row may be equal.
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
        # Best-scored labels first, those to skip last (as NaN). The sort is stable and ids ascend, so of equal scores
        # the lower index stays first.
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
        # The scores of later labels are no higher, so a row without a label in the top k here, or without more labels,
        # is done.
        active = active[rank < k]
        if column + 1 < ranks.shape[1]:
            active = active[inside[active, column + 1]]
    return ranks


def _ranks(scores: np.ndarray, own: np.ndarray, ids: np.ndarray, k: int) -> np.ndarray:
    """Rank of one label for each row; `own` is its score and `ids` its index, both `[N, 1]`. Not exact from k on."""
    rank = _count(scores > own)
    near = np.flatnonzero(rank < k)
    if 2 * near.size > rank.size:  # copying most rows costs more than comparing all of them
        near = np.arange(rank.size)
    equal = (scores if near.size == rank.size else scores[near]) == own[near]
    several = _count(equal) > 1
    tied = near[several]
    lower = np.arange(scores.shape[1]) < ids[tied]
    rank[tied] += _count(equal[several] & lower)
    return rank


def _count(flags: np.ndarray) -> np.ndarray:
    # Sixteen bits are summed four times as fast as sixty-four.
    narrow = np.uint16 if flags.shape[1] < 1 << 16 else np.int64
    return np.asarray(flags.sum(axis=1, dtype=narrow).astype(np.int64))
