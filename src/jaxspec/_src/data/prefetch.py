"""Batches in: one thread calls input_fn, checks what it yields, and stacks it for the devices."""

import contextlib
import dataclasses
import functools
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxspec._src.base.callables import describe
from jaxspec._src.data.batch import Batch, BatchChecker
from jaxspec._src.data.callers_context import in_callers_context
from jaxspec._src.data.input_report import InputReport
from jaxspec._src.data.input_source import InputMemory, InputSource
from jaxspec._src.data.stacks import Slice, Stack
from jaxspec._src.spec.mode import ModeKeys

_logger = logging.getLogger("jaxspec")
_PREFETCHED_STACKS = 2
_PATIENCE_SECS = 0.02
"""How long a full stack is waited for before one that is not full is taken."""
_JOIN_SECS = 10
_INTERRUPTED_JOIN_SECS = 1
"""Before the first batch there is nothing to save: an interrupt is answered at once."""


class Infeed:
    """The batches of one call of input_fn, all of which runs in a thread of its own: the call, each `next`, the close.

    The thread has a copy of the caller's context. The first batch is waited for: `first` is None when there is none.
    `start` begins the prefetching, `take` gives what to run next.

    An iterator that somebody else holds, too, when input_fn returns it is *lent*. It is not closed, it is read no further
    than `take` asks, and batches that were read and not taken are kept in `memory` for the next call.

    Args:
      input_fn: names any of `available`.
      available: the arguments by name.
      mode: a `ModeKeys` value.
      num_shards: the devices that this process feeds.
      batch_size: rows this process must yield; None: as many as the first batch has.
      ragged: whether batches of another size are allowed (never so in training on several shards).
      limit: the most batches to ask for; None: all.
      position: where to go on, for a source that has `get_state` and `set_state`.
      resume: None: go on at the position if the input is the one that it came from; True: whatever the input is;
        False: never.
      step: the global step that training goes on at.
      restarted: whether the state comes from a checkpoint.
      memory: of the calls before.
      check_interrupt: asked while the first batch is waited for; raises to end the wait.
      clock: seconds.
    """

    def __init__(
        self,
        input_fn: Callable[..., Any],
        available: dict[str, Any] | None = None,
        *,
        mode: str,
        num_shards: int,
        batch_size: int | None,
        ragged: bool,
        limit: int | None = None,
        position: str | None = None,
        resume: bool | None = None,
        step: int = 0,
        restarted: bool = False,
        memory: InputMemory | None = None,
        check_interrupt: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.first: Batch | None = None
        self._name, self._num_shards, self._training = describe(input_fn), num_shards, mode == ModeKeys.TRAIN
        self._memory = InputMemory() if memory is None else memory
        self._report = InputReport(self._name, mode=mode, limit=limit, step=step, clock=clock)
        self._source = InputSource(
            input_fn,
            available or {},
            functools.partial(BatchChecker, mode=mode, num_shards=num_shards, batch_size=batch_size, ragged=ragged),
            ragged=ragged,
            training=self._training,
            endless=mode != ModeKeys.EVAL,
            limit=limit,
            position=position,
            resume=resume,
            step=step,
            restarted=restarted,
            memory=self._memory,
        )
        self._items: queue.Queue[Any] = queue.Queue(_PREFETCHED_STACKS)
        self._opened, self._started, self._stop = threading.Event(), threading.Event(), threading.Event()
        self._capacity = 1
        self._closed = False
        self._filling: Stack | None = None
        self._lock = threading.Lock()  # of `_filling`
        self._current: Any = None
        self._taken = self._asked = 0
        self._asking = threading.Condition()  # of `_asked`
        self._unused: list[Stack | Batch] = []
        self._failure: BaseException | None = None
        self._close_error: BaseException | None = None
        self._ended = False
        self._thread = threading.Thread(target=in_callers_context(self._run), name="jaxspec-infeed", daemon=True)
        try:
            self._thread.start()
            while not self._opened.wait(0.1):
                check_interrupt()
            if self._failure is not None:
                raise self._failure
        except BaseException:
            self.close(_INTERRUPTED_JOIN_SECS)
            raise
        finally:
            self._failure = None  # it holds this frame

    @property
    def position(self) -> str | None:
        """Where the input goes on; None: at its beginning, or where it stands."""
        return self._source.position

    @property
    def batch_size(self) -> int | None:
        """The rows of a full batch of this process; None before the first."""
        return self._source.checker.batch_size

    @property
    def rows_per_shard(self) -> int:
        """The rows of a full shard."""
        assert self.batch_size is not None
        return self.batch_size // self._num_shards

    def first_shard(self) -> tuple[Any, Any]:
        """The first shard of the first batch: what init_fn gets."""
        assert self.first is not None
        rows = min(self.rows_per_shard, self.first.rows)
        # A copy: what is computed from it may still read it when the input changes its buffer.
        data: tuple[Any, Any] = jax.tree.map(lambda x: np.array(x[:rows]), self.first.data)
        return data

    def ready(self) -> bool:
        """Whether `take` would answer at once."""
        return self._current is not None or not self._items.empty()

    def start(self, capacity: int) -> None:
        """Begins to prepare stacks of `capacity` batches."""
        self._capacity = capacity
        self._report.start()
        self._started.set()

    def take(self, most: int, give_up: Callable[[], bool] = lambda: False) -> "Slice | Batch | None":
        """Up to `most` full batches that lie in one stack; or one ragged batch; or None at the end of the input.

        Waits for the input, but no longer than until `give_up()`; then it gives None too. An exception in the input is raised here, when the batches before it have been taken.
        """
        if self._source.lent:
            most = most if self._training else 1  # what would run ahead in evaluation may never be used
            with self._asking:
                self._asked = self._taken + most
                self._asking.notify()
        while self._current is None:
            self._report.taken(self._taken)
            try:
                self._current = self._items.get(timeout=_PATIENCE_SECS)
            except queue.Empty:
                # The input is slow, or waits for our answer: what there is will do.
                self._current = self._unfinished_stack()
                if self._current is None and give_up():
                    return None
        if isinstance(self._current, BaseException):
            raise self._current
        if self._current is _END:
            self._report.ended(self._taken)
            self._ended = True
            return None
        if isinstance(self._current, Batch):
            batch, self._current = self._current, None
            self._taken += 1
            return batch
        stack = self._current
        part: Slice = stack.take(most)
        self._taken += part.stop - part.start
        if part.stop == stack.count:
            self._current = None
        return part

    def _unfinished_stack(self) -> Stack | None:
        with self._lock:
            # Full ones come first; the producer puts them without the lock.
            if not self._items.empty():
                return None
            stack, self._filling = self._filling, None
        return stack

    def close(self, patience_secs: float = _JOIN_SECS) -> None:
        """Stops the thread, which closes the input. Batches not taken are lost, but for those of a lent iterator.

        A second call does nothing: what did not end in time the first time is left alone.
        """
        if self._closed:
            return
        self._closed = True
        self._stop.set()
        self._started.set()
        with self._asking:
            self._asking.notify()
        if self._thread is threading.current_thread() or self._thread.ident is None:
            return  # collected as garbage within the thread, or never started
        self._thread.join(timeout=patience_secs)
        if self._thread.is_alive():
            _logger.warning(
                "input_fn has been busy for %d s and cannot be interrupted; its thread is left to finish.",
                patience_secs,
            )
            return
        self._memory.used_up = self._ended if self._training else self._memory.used_up
        self._source.remember(self._left_over())
        if self._close_error is not None:
            error, self._close_error = self._close_error, None
            _logger.warning(
                "input_fn (%s): closing the input failed: %s: %s",
                self._name,
                type(error).__name__,
                error,
                exc_info=error,
            )

    def _left_over(self) -> list[Batch]:
        """The batches that were fetched and not taken, in order, once."""
        items, self._current = [self._current], None
        with contextlib.suppress(queue.Empty):
            while True:
                items.append(self._items.get_nowait())
        items += self._unused
        self._unused = []
        batches = []
        for item in items:
            if isinstance(item, Batch):
                batches.append(item)
            elif isinstance(item, Stack):
                batches += item.rest()
        return batches

    # What follows runs in the thread.

    def _run(self) -> None:
        end: Any = _END
        batch = None
        try:
            batch = self.first = self._source.open()
            self._opened.set()
            self._started.wait()
            self._wait_for_asking(1)
            fetched = 1
            while batch is not None and not self._stop.is_set():
                if batch.rows != self.batch_size:
                    self._put_filling()
                    # A copy, as for stacks: the input may use its buffer again.
                    self._put(_copied(batch))
                elif self._stacked(batch) == self._capacity:
                    self._put_filling()
                batch = None
                self._wait_for_asking(fetched + 1)
                if not self._stop.is_set():
                    batch = self._source.fetch()
                    fetched += 1
        except BaseException as error:
            end = error
        self._put_filling()
        if batch is not None:
            self._unused.append(_copied(batch))
        another = self._source.close()
        if another is not None and isinstance(end, BaseException):
            end.add_note(f"and then, in closing the input: {type(another).__name__}: {another}")
        else:
            self._close_error = another
        if not self._opened.is_set():
            self._failure = end
            self._opened.set()
        self._put(end)

    def _wait_for_asking(self, count: int) -> None:
        """Waits until a lent iterator is to give so many batches in all."""
        if not self._source.lent:
            return
        if self._asked < count:
            self._put_filling()  # whoever asked for them is waiting
        with self._asking:
            self._asking.wait_for(lambda: self._stop.is_set() or self._asked >= count)

    def _stacked(self, batch: Batch) -> int:
        """Copies a full batch into the stack that is being filled; returns how many that holds."""
        with self._lock:
            if self._filling is None:
                # A new one each time: a device may still read the last one, on a CPU without a copy of its own.
                self._filling = Stack.like(batch, (self._capacity, self._num_shards, self.rows_per_shard))
            return self._filling.add(batch)

    def _put_filling(self) -> None:
        # One stack at a time is between `_filling` and the queue, and only this thread fills another: while it is, a
        # consumer finds neither and waits, so the order is kept.
        with self._lock:
            stack, self._filling = self._filling, None
        if stack is not None:
            self._put(stack)

    def _put(self, item: Any) -> None:
        """Waits for room in the queue, or until nobody wants the item any more."""
        while not self._stop.is_set():
            try:
                self._items.put(item, timeout=0.05)
            except queue.Full:
                continue
            return
        self._unused.append(item)


class _End:
    """The end of the input."""


_END = _End()


def _copied(batch: Batch) -> Batch:
    return dataclasses.replace(batch, data=jax.tree.map(np.array, batch.data))
