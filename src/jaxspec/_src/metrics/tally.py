"""Weights added up by cell, for metrics with many cells: a batch costs time linear in the batch, not in the cells."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

_LARGE = 1 << 12
"""More cells than that are not added up for each batch."""
_MOST_BATCHES = 1000
"""The entries of more batches do not wait: joining lists of them would take longer than adding them up."""


@dataclasses.dataclass(frozen=True, eq=False)
class Tally:
    """An array of float64 sums, to which entries are still to be added. NumPy reads it as the array of all of them.

    Entries are added to the array once there are as many as it has cells, or those of 1000 batches. So `a + b` takes
    time linear in the entries of `b`, on average, and entries take at most twice the memory of the array.

    Attributes:
      shape: of the array.
      added: the array without `entries`; None: zeros.
      entries: for each batch the cells, integers `[n]` that index the flat array, and their weights, float64 `[n]`.
      count: of all entries.
    """

    shape: tuple[int, ...]
    added: np.ndarray | None
    entries: tuple[tuple[np.ndarray, np.ndarray], ...]
    count: int

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        if self.added is not None and not self.entries:
            return self.added
        cells, weights = (np.concatenate(arrays) for arrays in zip(*self.entries, strict=True))
        sums = np.bincount(cells, weights, minlength=math.prod(self.shape)).reshape(self.shape)
        return sums if self.added is None else sums + self.added

    def __add__(self, other: Tally | np.ndarray) -> Tally | np.ndarray:
        if not isinstance(other, Tally) or (self.added is not None and other.added is not None):
            total: np.ndarray = np.asarray(self) + np.asarray(other)
            return total
        entries, count = self.entries + other.entries, self.count + other.count
        both = Tally(self.shape, other.added if self.added is None else self.added, entries, count)
        if count < math.prod(self.shape) and len(entries) < _MOST_BATCHES:
            return both
        return Tally(self.shape, np.asarray(both), (), 0)


def tally(cells: np.ndarray, weights: np.ndarray | None, shape: tuple[int, ...]) -> Tally | np.ndarray:
    """The total weight of each cell.

    Args:
      cells: integers that index the flat array of the result; any shape.
      weights: of the same shape; None: all 1.
    """
    flat, size = cells.reshape(-1), math.prod(shape)
    if size <= _LARGE or flat.size >= size:
        counts = np.bincount(flat, None if weights is None else weights.reshape(-1), minlength=size)
        return counts.astype(np.float64, copy=False).reshape(shape)
    heavy = np.ones(flat.size) if weights is None else np.array(weights.reshape(-1), np.float64)
    return Tally(shape, None, ((np.array(flat), heavy),), flat.size)
