"""A stack: several full batches in one array per leaf, sent to the devices in one transfer."""

import dataclasses
from collections.abc import Callable

import jax

from jaxspec._src.base.arrays import describe_leaves, named_leaves
from jaxspec._src.base.types import Batch, PositionAt
from jaxspec._src.data.batch import InputBatch
from jaxspec._src.device.shards import capacity_of
from jaxspec._src.device.stack_buffers import StackBuffers


def position_after(batch: InputBatch) -> PositionAt:
    """The position of a batch that knows it already."""
    position = batch.position  # not the batch, which would keep its arrays
    return lambda: position


def no_position() -> None:
    """The position of an input that reports none."""


def describe_data(data: Batch) -> str:
    """The dtypes and shapes of (features, labels), for messages."""
    features, labels = data
    return describe_leaves(named_leaves({"features": features, "labels": labels}))


@dataclasses.dataclass
class Stack:
    """Full batches for the devices, taken in slices."""

    batch_at: Callable[[int], Batch]
    """Gives a batch on the host again, by its place."""
    buffers: StackBuffers | None = None
    """The batches on the host; None: they were never there."""
    data: Batch = None
    """(features, labels) on the devices, leaves `[capacity, shards, rows per shard, ...]`; None: not there yet."""
    capacity: int = 1
    """How many batches there is room for."""
    signature: int = 0
    """That of the batches."""
    positions: list[PositionAt] = dataclasses.field(default_factory=list)
    """After each batch that has been added."""
    taken: int = 0

    @property
    def count(self) -> int:
        """How many batches have been added."""
        return len(self.positions)

    @property
    def left(self) -> int:
        """How many batches have not been taken."""
        return self.count - self.taken

    def take(self, most: int, done: Callable[[], None]) -> "Slice":
        """Up to `most` batches that have not been taken. `done` may be called once the devices have read the stack."""
        start, stop = self.taken, min(self.taken + most, self.count)
        self.taken = stop
        return Slice(
            self.data,
            start,
            stop - start,
            self.positions[stop - 1],
            self.signature,
            done if not self.left else _nothing,
        )

    def rest(self) -> list[InputBatch]:
        """The batches that have not been taken, as they came."""
        batches = [(self.batch_at(i), self.positions[i]()) for i in range(self.taken, self.count)]
        return [InputBatch(data, jax.tree.leaves(data)[0].shape[0], position) for data, position in batches]


def _nothing() -> None:
    pass


@dataclasses.dataclass(frozen=True)
class Slice:
    """Batches of a stack, from batch `start` on, counted from 0."""

    data: Batch
    """The arrays of the whole stack."""
    start: int
    count: int
    position_at: PositionAt = no_position
    """After the last one."""
    signature: int = 0
    """That of the batches: 0 for those with the shapes of the first."""
    done: Callable[[], None] = _nothing
    """To be called once all devices have done the steps: the memory of the stack is used again."""

    @property
    def capacity(self) -> int:
        """How many batches the stack has room for."""
        return capacity_of(self.data)

    def explain(self, error: BaseException) -> None:
        """Adds to an error of a dispatch that the batches have shapes of their own, which may not have been meant."""
        if self.signature:
            error.add_note(
                "raised for batches whose shapes are not those of the first batch: "
                f"{describe_data(self.data)}, with [batches, shards] in front. They get a program of their own. If "
                "that is not meant, mend input_fn; RunConfig(max_programs=1) refuses such batches."
            )

    def finish(self, outputs: object) -> None:
        """Calls `done` once all devices have made these outputs."""
        jax.block_until_ready(outputs)
        self.done()
