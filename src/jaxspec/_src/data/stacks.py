"""A stack: several full batches in one array per leaf, sent to the devices in one transfer."""

import dataclasses
import math

import jax

from jaxspec._src.base.types import PyTree
from jaxspec._src.data.batch import InputBatch
from jaxspec._src.device.shards import batch_of_stack, capacity_of, copy_into_stack

_WORTH_A_PROGRAM = 3
"""So many dispatches take one batch of a larger stack before a program for single batches is compiled."""


@dataclasses.dataclass
class Stack:
    """Full batches, ready for a dispatch. Each stack has arrays of its own, which nobody writes to once it is taken."""

    data: tuple[PyTree, PyTree]
    """(features, labels), NumPy leaves `[capacity, shards, rows per shard, ...]`."""
    positions: list[str | None] = dataclasses.field(default_factory=list)
    """The position after each batch that has been added."""
    taken: int = 0

    @property
    def count(self) -> int:
        """How many batches have been added."""
        return len(self.positions)

    @property
    def left(self) -> int:
        """How many batches have not been taken."""
        return self.count - self.taken

    def add(self, batch: InputBatch) -> None:
        """Copies a batch into the next place."""
        copy_into_stack(self.data, self.count, batch.data)
        self.positions.append(batch.position)

    def take(self, most: int) -> "Slice":
        """Up to `most` batches that have not been taken."""
        start, stop = self.taken, min(self.taken + most, self.count)
        self.taken = stop
        return Slice(self.data, start, stop - start, self.positions[stop - 1])

    def rest(self) -> list[InputBatch]:
        """The batches that have not been taken, as they came."""
        rows = math.prod(jax.tree.leaves(self.data)[0].shape[1:3])
        indices = range(self.taken, self.count)
        return [InputBatch(batch_of_stack(self.data, i), rows, self.positions[i]) for i in indices]


@dataclasses.dataclass(frozen=True)
class Slice:
    """Batches of a stack, from batch `start` on, counted from 0."""

    data: tuple[PyTree, PyTree]
    """The arrays of the whole stack."""
    start: int
    count: int
    position: str | None
    """The position of the input after the last one."""

    @property
    def capacity(self) -> int:
        """How many batches the stack has room for."""
        return capacity_of(self.data)


class SingleBatches:
    """Takes a single batch out of its stack, so that a dispatch transfers no more than it uses.

    A stack of another capacity needs another program, which computes the same bits, but has to be compiled. So this
    begins once single batches have come several times, as from a slow input, or where a hook ends loops early.
    """

    def __init__(self) -> None:
        self._seen = 0

    def alone(self, item: Slice) -> Slice:
        """The slice; or, if it is a single batch, a slice of a stack that holds nothing else."""
        if item.count == 1 < item.capacity:
            self._seen += 1
            if self._seen > _WORTH_A_PROGRAM:
                return Slice(jax.tree.map(lambda x: x[item.start : item.start + 1], item.data), 0, 1, item.position)
        return item
