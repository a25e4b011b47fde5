"""The queue between the thread of the input and the thread that dispatches.

The input's thread puts batches. Full ones are copied side by side into a stack of `capacity`; a ragged one is an item
of its own. `QUEUED_ITEMS` items may wait; besides them there is the stack that is being filled and the one that is
being taken. Whoever has taken a stack owns its arrays. One lock guards everything; batches are copied without it.
"""

import collections
import dataclasses
import math
import threading

import jax
import numpy as np

from jaxspec._src.data.batch import InputBatch
from jaxspec._src.data.stacks import Slice, Stack
from jaxspec._src.device.shards import empty_stack

QUEUED_ITEMS = 2
"""So many full stacks and ragged batches wait for the devices; the input's thread waits for room then."""


@dataclasses.dataclass(frozen=True)
class End:
    """The end of the input."""

    error: BaseException | None
    """What ended it; None: it had no more batches."""


class StackQueue:
    """Passes batches from one thread to another, in order, as stacks.

    Args:
      num_shards: the devices that this process feeds.
    """

    def __init__(self, num_shards: int) -> None:
        self.capacity = 1
        """How many batches a stack has room for. Set before the first batch is put."""
        self.stopped = False
        self._num_shards = num_shards
        self._items: collections.deque[Stack | InputBatch | End] = collections.deque()
        self._filling: Stack | None = None
        self._current: Stack | InputBatch | None = None
        """What is being taken."""
        self._asked: float = math.inf
        self._changed = threading.Condition()

    # The input's thread calls these.

    def put(self, batch: InputBatch, *, full: bool) -> None:
        """Copies a batch into the queue, and waits for room if that fills a stack, or if the batch is not full."""
        if not full:
            self.flush()
            # In arrays of its own: the input may write to its arrays again.
            self._put(dataclasses.replace(batch, data=jax.tree.map(np.array, batch.data)))
            return
        with self._changed:
            stack, self._filling = self._filling, None
        if stack is None:
            # A new one each time: a device may still read the last one, on a CPU without a copy of its own.
            stack = Stack(empty_stack(batch.data, self.capacity, self._num_shards))
        stack.add(batch)
        if stack.count == self.capacity:
            self._put(stack)
        else:
            with self._changed:
                self._filling = stack

    def flush(self) -> None:
        """Puts the stack that is being filled, as it is."""
        with self._changed:
            stack, self._filling = self._filling, None
        if stack is not None:
            self._put(stack)

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
        with self._changed:
            current = self._current
            assert current is not None
            if isinstance(current, InputBatch):
                self._current = None
                return current
            part = current.take(most)
            if current.taken == current.count:
                self._current = None
            return part

    def stop(self) -> None:
        """Ends all waiting of the input's thread. What it still puts is left over."""
        with self._changed:
            self.stopped = True
            self._changed.notify_all()

    def left_over(self) -> list[InputBatch]:
        """The batches that were put and not taken, in order; the queue is empty then. For after the thread has
        ended."""
        items = [self._current, *self._items]
        self._current = None
        self._items.clear()
        return [batch for item in items if isinstance(item, Stack | InputBatch) for batch in item.rest()]
