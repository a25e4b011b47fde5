"""Full batches side by side: what one dispatch takes to the devices."""

import dataclasses
from typing import Any, Self

import jax
import numpy as np

from jaxspec._src.data.batch import Batch


@dataclasses.dataclass
class Stack:
    """Full batches, ready for one dispatch: leaves `[capacity, shards, rows per shard, ...]`; `count` are filled."""

    data: tuple[Any, Any]
    count: int
    positions: list[str | None]
    taken: int = 0

    @classmethod
    def like(cls, batch: Batch, lead: tuple[int, int, int]) -> Self:
        """An empty stack for batches like this one; `lead`: capacity, shards, rows per shard."""
        return cls(jax.tree.map(lambda x: np.zeros((*lead, *x.shape[1:]), x.dtype), batch.data), 0, [])

    def add(self, batch: Batch) -> int:
        """Copies a batch into the next place; returns how many there are."""

        def copy(to: np.ndarray, x: np.ndarray) -> None:
            to[self.count] = x.reshape(to.shape[1:])

        jax.tree.map(copy, self.data, batch.data)
        self.positions.append(batch.position)
        self.count += 1
        return self.count

    def take(self, most: int) -> "Slice":
        """Up to `most` batches that were not taken."""
        start, stop = self.taken, min(self.taken + most, self.count)
        self.taken = stop
        return Slice(self.data, start, stop, self.positions[stop - 1])

    def rest(self) -> list[Batch]:
        """The batches that were not taken, as they came."""
        batches = []
        for i in range(self.taken, self.count):
            data = jax.tree.map(lambda x, i=i: x[i].reshape(-1, *x.shape[3:]), self.data)
            rows = jax.tree.leaves(data)[0].shape[0]
            batches.append(Batch(data, rows, self.positions[i]))
        return batches


@dataclasses.dataclass(frozen=True)
class Slice:
    """Batches `start` to `stop - 1` of a stack."""

    data: tuple[Any, Any]
    start: int
    stop: int
    position: str | None

    @property
    def capacity(self) -> int:
        """How many batches the stack may hold."""
        size: int = jax.tree.leaves(self.data)[0].shape[0]
        return size


class SingleBatches:
    """Takes a single batch out of its stack, so that a dispatch carries what it uses.

    A stack of another capacity is another program. It computes the same, bit for bit, but has to be compiled: so this
    begins once single batches have come some times, as with a slow input, or where a hook cuts loops short.
    """

    def __init__(self) -> None:
        self._seen = 0

    def alone(self, item: Slice) -> Slice:
        """The slice, or one of a stack that holds its only batch and nothing else."""
        if item.stop - item.start > 1 or item.capacity == 1:
            return item
        self._seen += 1
        if self._seen <= _WORTH_A_PROGRAM:
            return item
        return Slice(jax.tree.map(lambda x: x[item.start : item.stop], item.data), 0, 1, item.position)


_WORTH_A_PROGRAM = 3
"""So many dispatches of one batch in a stack for many are let pass: the first of a run, and what comes by chance."""
