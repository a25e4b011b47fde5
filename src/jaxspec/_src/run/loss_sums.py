"""The loss of an evaluation, added up on the host."""

from collections.abc import Iterable

import numpy as np

_SPREAD = 1e-4
"""A relative variance of weights that is more than rounding: they differ by a hundredth."""


class LossSums:
    """Sums in float64 from which the loss of any set of examples comes: each term has a weight of its own.

    The rest of the loss, what is in no `global_mean`, is weighted by the number of rows.
    """

    def __init__(self) -> None:
        self._sums: list[tuple[float, float]] = []
        """(sum of value * weight, sum of weights), of the rest and of each term."""
        self.inexact = False
        """Whether a term had several weights, of which only the mean is known."""

    def add(self, parts: np.ndarray, rows: int) -> None:
        """Adds a group of `rows` rows, with the parts that `with_parts_of_loss` gave."""
        rest, *others = parts.tolist()
        self._add([(rest, rows), *zip(others[::3], others[1::3], strict=True)])
        self.inexact |= any(spread > _SPREAD for spread in others[2::3])

    def merge(self, other: "LossSums") -> None:
        """Adds all that `other` has."""
        self._add_sums(other._sums)
        self.inexact |= other.inexact

    def _add(self, weighted: Iterable[tuple[float, float]]) -> None:
        # A term of weight 0 has no value, whatever stands there.
        self._add_sums([(value * weight if weight else 0.0, weight) for value, weight in weighted])

    def _add_sums(self, sums: list[tuple[float, float]]) -> None:
        self._sums += [(0.0, 0.0)] * (len(sums) - len(self._sums))
        for i, (value, weight) in enumerate(sums):
            total, weights = self._sums[i]
            self._sums[i] = total + value, weights + weight

    def compute(self) -> float:
        """The loss: the sum of the weighted means."""
        return sum(total / weight for total, weight in self._sums if weight)
