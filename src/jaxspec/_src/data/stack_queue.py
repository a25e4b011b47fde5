"""The queue between the thread of the input and the thread that dispatches.

The input's thread puts batches. Full ones are copied side by side into a stack of `capacity`, which that thread sends
to the devices when it is full; a ragged one is an item of its own. `QUEUED_ITEMS` items may wait; besides them there is
the stack that is being filled, the one that is being taken, and those of the dispatches in flight. One lock guards
everything; batches are copied without it.
"""

import collections
import dataclasses
import functools
import math
import threading
from collections.abc import Sequence

import jax
import numpy as np

from jaxspec._src.base.types import Batch, PositionAt, PyTree
from jaxspec._src.data.batch import InputBatch
from jaxspec._src.data.stacks import Slice, Stack, describe_data, position_after
from jaxspec._src.device.stack_buffers import StackBuffers
from jaxspec._src.device.stack_placement import ResidentArrays, StackPlacement

QUEUED_ITEMS = 2
"""So many full stacks and ragged batches wait for the devices; the input's thread waits for room then."""
_FREE_STACKS = 6
"""Memory of so many stacks is kept to be used again."""
_WORTH_A_PROGRAM = 3
"""So many single batches are sent in a larger stack before a program for single batches is compiled."""


@dataclasses.dataclass(frozen=True)
class End:
    """The end of the input."""

    error: BaseException | None
    """What ended it; None: it had no more batches."""


class StackQueue:
    """Passes batches from one thread to another, in order, as stacks on the devices.

    Args:
      free: memory of an earlier queue, as `spare_buffers` returns it.
    """

    def __init__(self, free: Sequence[StackBuffers] = ()) -> None:
        self.stopped = False
        self.capacity = 1
        """How many batches a stack has room for."""
        self._placement: StackPlacement | None = None
        self._items: collections.deque[Stack | InputBatch | End] = collections.deque()
        self._filling: Stack | None = None
        self._current: Stack | InputBatch | None = None
        """What is being taken."""
        self._free = list(free)
        self._first_bytes = 0
        self._singles = 0
        """How many stacks were taken with a single batch in them."""
        self._asked: float = math.inf
        self._changed = threading.Condition()

    @property
    def placement(self) -> StackPlacement:
        """Where the stacks go."""
        assert self._placement is not None
        return self._placement

    def begin(self, capacity: int, placement: StackPlacement) -> None:
        """Called before the first batch is put.

        Args:
          capacity: how many batches a stack has room for.
          placement: where the stacks go.
        """
        self.capacity, self._placement = capacity, placement

    # The input's thread calls these.

    def put(self, batch: InputBatch, *, full: bool) -> None:
        """Copies a batch into the queue, and waits for room if that fills a stack, or if the batch is not full."""
        if not full:
            self.flush()
            # In arrays of its own: the input may write to its arrays again.
            self._put(dataclasses.replace(batch, data=jax.tree.map(np.array, batch.data)))
        elif batch.on_devices:
            self.flush()
            data = self.placement.of_batch(batch.data)
            self._put(Stack(lambda i: batch.data, data=data, positions=[position_after(batch)]))
        else:
            stack = self._take_filling(batch.data, batch.signature)
            self._buffers_of(stack).write(stack.count, batch.data)
            self._added(stack, [position_after(batch)])

    def put_rows(self, arrays: PyTree, rows: np.ndarray, positions: Sequence[PositionAt]) -> None:
        """Copies full batches of examples into the queue, as `put` does.

        Args:
          arrays: a tree of NumPy arrays `[examples, ...]`, of the structure and dtypes of a batch.
          rows: which examples, int `[batches, rows]`. No more batches than `room`.
          positions: after each batch.
        """
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows.shape[1], *x.shape[1:]), x.dtype), arrays)
        stack = self._take_filling(like)
        self._buffers_of(stack).gather(stack.count, arrays, rows)
        self._added(stack, positions)

    def put_resident(self, arrays: ResidentArrays, rows: np.ndarray, positions: Sequence[PositionAt]) -> None:
        """As `put_rows`, of arrays that are on the devices: a stack of its own."""
        self.flush()
        data = arrays.stack(rows, self.capacity)
        self._put(Stack(_never_lent, data=data, capacity=self.capacity, positions=list(positions)))

    def room(self) -> int:
        """How many batches may be put before a stack is full."""
        with self._changed:
            filling = self._filling
            return self.capacity if filling is None else filling.capacity - filling.count

    def flush(self) -> None:
        """Puts the stack that is being filled, as it is."""
        with self._changed:
            stack, self._filling = self._filling, None
        if stack is not None:
            self._put(self._placed(stack))

    def end(self, error: BaseException | None) -> None:
        """Puts the end of the input, behind everything else; the stack that was being filled has been flushed."""
        self._put(End(error))

    def fetch_on_demand(self) -> None:
        """From now on no more batches may be fetched than the other thread has asked for."""
        self._asked = 0

    def may_fetch(self, count: int) -> bool:
        """Waits until `count` batches in all may be fetched. False: the queue is stopped, and none may be."""
        if self._asked < count:
            self.flush()  # the other thread waits for what it has asked for
        with self._changed:
            self._changed.wait_for(lambda: self.stopped or self._asked >= count)
            return not self.stopped

    def _take_filling(self, batch: Batch, signature: int = 0) -> Stack:
        """The stack to write a batch like this to, which the other thread cannot take meanwhile."""
        with self._changed:
            stack, self._filling = self._filling, None
        if stack is not None and stack.signature == signature:
            return stack
        if stack is not None:
            self._put(self._placed(stack))
        wanted = batch, self._capacity_for(batch), len(self.placement.local_devices)
        with self._changed:
            buffers = next((free for free in self._free if free.fits(*wanted)), None)
            if buffers is not None:
                self._free.remove(buffers)
        if buffers is None:
            buffers = StackBuffers(*wanted)
        return Stack(buffers.batch, buffers, capacity=buffers.capacity, signature=signature)

    def _capacity_for(self, batch: Batch) -> int:
        """The capacity of a stack of such batches: no larger in bytes than one of batches like the first."""
        size = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(batch)) or 1
        self._first_bytes = self._first_bytes or size
        return min(self.capacity, max(1, self.capacity * self._first_bytes // size))

    def _buffers_of(self, stack: Stack) -> StackBuffers:
        assert stack.buffers is not None
        return stack.buffers

    def _added(self, stack: Stack, positions: Sequence[PositionAt]) -> None:
        stack.positions.extend(positions)
        if stack.count == stack.capacity:
            self._put(self._placed(stack))
        else:
            with self._changed:
                self._filling = stack
                # No `notify`: the other thread would rather have a full stack.

    def _placed(self, stack: Stack, stop: int | None = None) -> Stack:
        stack.data = self.placement.of_host(self._buffers_of(stack), stop)
        return stack

    def _put(self, item: Stack | InputBatch | End) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self.stopped or len(self._items) < QUEUED_ITEMS)
            self._items.append(item)
            self._changed.notify_all()

    # The thread that dispatches calls these.

    def ask(self, count: int) -> None:
        """Lets the input's thread fetch `count` batches in all, if it fetches on demand."""
        with self._changed:
            self._asked = count
            self._changed.notify_all()

    def ready(self) -> bool:
        """Whether `take` would answer at once."""
        return self._current is not None or bool(self._items)

    def next_shapes(self) -> str:
        """The shapes and dtypes of what `take` gives next, after `count_ready` found some."""
        current = self._current
        assert current is not None
        self._place_current()
        return describe_data(current.data)

    def count_ready(self, most: int, patience_secs: float) -> int | End:
        """How many batches `take(most)` would give now: full ones of one stack, or one ragged batch. Or the end, again
        and again.

        Waits for a full stack, but for no longer than `patience_secs`: what there is will do then. 0: there is nothing.
        """
        with self._changed:
            if self._current is None:
                if self._changed.wait_for(lambda: bool(self._items), patience_secs):
                    item = self._items[0]
                    if isinstance(item, End):
                        return item
                    self._items.popleft()
                    self._changed.notify_all()
                    self._current = item
                else:
                    self._current, self._filling = self._filling, None
            return 0 if self._current is None else min(most, self._current.left)

    def take(self, most: int) -> Slice | InputBatch:
        """Up to `most` full batches of one stack, or one ragged batch, after `count_ready` found some."""
        current = self._current
        assert current is not None
        self._place_current()
        with self._changed:
            if isinstance(current, InputBatch):
                self._current = None
                return current
            part = current.take(most, functools.partial(self._done_with, current))
            if current.taken == current.count:
                self._current = None
            return part

    def _place_current(self) -> None:
        """Sends a stack to the devices that was taken before it was full."""
        current = self._current
        if isinstance(current, Stack) and current.data is None:
            self._placed(current, 1 if self._goes_alone(current) else None)

    def _goes_alone(self, stack: Stack) -> bool:
        """Whether the only batch of a stack is sent without the rest of the stack, as a stack of one.

        That needs another program, which computes the same bits, but has to be compiled. So this begins once it has
        happened several times, as with a slow input.
        """
        placement = self.placement
        if stack.count > 1 or len(placement.local_devices) < len(placement.devices):  # all processes run one program
            return False
        self._singles += 1
        return self._singles > _WORTH_A_PROGRAM

    def _done_with(self, stack: Stack) -> None:
        """The devices have read the stack: its memory is free."""
        if stack.buffers is not None:
            with self._changed:
                self._free.append(stack.buffers)
                del self._free[:-_FREE_STACKS]

    def stop(self) -> None:
        """Ends all waiting of the input's thread. What it still puts is left over."""
        with self._changed:
            self.stopped = True
            self._changed.notify_all()

    def spare_buffers(self) -> list[StackBuffers]:
        """The memory of stacks that nothing reads any more, or ever will; none if a device has failed.

        For after the thread has ended.
        """
        stacks = [item for item in (self._current, self._filling, *self._items) if isinstance(item, Stack)]
        try:
            jax.block_until_ready([stack.data for stack in stacks])  # they may be on their way to the devices
        except jax.errors.JaxRuntimeError:  # the error of the run is the one to raise
            return []
        unread = [stack.buffers for stack in stacks if stack.buffers is not None and not stack.taken]
        return [*self._free, *unread][-_FREE_STACKS:]

    def left_over(self) -> list[InputBatch]:
        """The batches that were put and not taken, in order; the queue is empty then. For after the thread has
        ended."""
        items = [self._current, *self._items]
        self._current = None
        self._items.clear()
        return [batch for item in items if isinstance(item, Stack | InputBatch) for batch in item.rest()]


def _never_lent(index: int) -> Batch:
    raise AssertionError(f"batch {index} of an iterator that is not lent was asked for again")
