"""The loss of a whole evaluation: weighted sums in float64 over shards and batches, short ones included."""

import itertools
from collections.abc import Iterable

import numpy as np

_SPREAD = 1e-4
"""A larger relative variance of weights is no rounding error: the weights differ by a hundredth."""


class EvaluationLoss:
    """Sums in float64 that give the loss of any set of examples.

    The loss is a sum of terms. Each `global_mean` in it is a term with its own weights; the rest is one more term,
    weighted by the number of rows.
    """

    def __init__(self) -> None:
        self._sums: list[tuple[float, float]] = []
        """(sum of value * weight, sum of weights) of each term; the rest is the first one."""
        self.inexact = False
        """Whether shards had different weights for a term, so that only their mean is known."""

    def add(self, parts: np.ndarray, rows: int) -> None:
        """Adds a group of `rows` rows.

        Args:
          parts: `[1 + 3 * terms]`, as `with_parts_of_loss` makes it: the rest, then value, weight and spread of each
            term.
        """
        rest, *others = parts.tolist()
        terms = [(rest, rows), *zip(others[::3], others[1::3], strict=True)]
        # A term of weight 0 has no value: it may be NaN.
        self._add_sums([(value * weight if weight else 0.0, weight) for value, weight in terms])
        self.inexact |= any(spread > _SPREAD for spread in others[2::3])

    def merge(self, other: "EvaluationLoss") -> None:
        """Adds all that `other` has."""
        self._add_sums(other._sums)
        self.inexact |= other.inexact

    def _add_sums(self, sums: Iterable[tuple[float, float]]) -> None:
        pairs = itertools.zip_longest(self._sums, sums, fillvalue=(0.0, 0.0))
        self._sums = [(total + value, weights + weight) for (total, weights), (value, weight) in pairs]

    def compute(self) -> float:
        """The loss: the sum of the weighted means."""
        return sum(total / weight for total, weight in self._sums if weight)
