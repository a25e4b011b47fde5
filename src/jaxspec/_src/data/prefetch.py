"""Prefetching: one thread runs the input of a call, and keeps batches ready for the devices.

The thread is a daemon named `jaxspec-infeed`. It calls input_fn, `next`, `get_state`, `set_state` and `close`, checks
each batch, and copies it into the queue, whose bound is `stack_queue.QUEUED_ITEMS`. It dispatches nothing. The thread
that called the verb starts it, takes batches and closes it.
"""

import concurrent.futures
import functools
import logging
import threading
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from jaxspec._src.base.types import Clock, PyTree
from jaxspec._src.data.batch import InputBatch
from jaxspec._src.data.callers_context import in_callers_context
from jaxspec._src.data.input_request import InputRequest, InputWarnings
from jaxspec._src.data.input_source import InputSource
from jaxspec._src.data.lent_iterators import InputMemory
from jaxspec._src.data.stack_queue import End, StackQueue
from jaxspec._src.data.stacks import Slice
from jaxspec._src.device.stack_placement import ResidentArrays, StackPlacement, gathers_alone

_logger = logging.getLogger("jaxspec")
_CHECK_SECS = 0.1
"""How often the wait for the first batch calls `check_interrupt`."""
_PATIENCE_SECS = 0.02
"""How long `count_ready` waits for a full stack before it settles for one that is not full."""
_JOIN_SECS = 10
"""How long `close` waits for the thread, which input_fn may keep busy."""
_INTERRUPTED_JOIN_SECS = 1
"""Likewise before the first batch: there is nothing to save yet, so an interrupt is answered at once."""


class Infeed:
    """The batches of one call of input_fn, prefetched by a thread that has a copy of the caller's context.

    The constructor waits for the first batch: `first` is None if there is none. `start` begins the prefetching,
    `count_ready` waits for the next batches, `take` gives them, `close` ends the thread.

    A *lent* iterator, one that the caller holds, too, is not closed. It is read no further than `count_ready` asks,
    and batches that were read and not taken are kept in `memory` for the next call.

    Args:
      request: what is asked for.
      memory: what the estimator keeps of its input between calls.
      check_interrupt: called while the constructor waits for the first batch; raises to end the wait.
      clock: seconds.

    Raises:
      Anything that input_fn raises, as itself; ValueError, TypeError, OverflowError for an element that is no batch.
    """

    def __init__(
        self,
        request: InputRequest,
        *,
        memory: InputMemory | None = None,
        check_interrupt: Callable[[], None] = lambda: None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._request = request
        self._memory = InputMemory() if memory is None else memory
        self._warnings = InputWarnings(request, clock)
        self._source = InputSource(request, self._memory)
        free, self._memory.buffers = self._memory.buffers, ()
        self._queue = StackQueue(free)
        self._started = threading.Event()
        self._taken = 0
        self._arrays: PyTree | None = None
        """Those that many batches can be read from at a time; None: each batch is read on its own."""
        self.resident = False
        """Whether the input's arrays are kept on the devices."""
        self._resident_memory: Sequence[np.ndarray] = ()
        self._keeps_memory = False
        self.ended = False
        """Whether `count_ready` has come to the end of the input."""
        self._closed = False
        self._close_error: BaseException | None = None
        opening: concurrent.futures.Future[InputBatch | None] = concurrent.futures.Future()
        run = in_callers_context(functools.partial(self._run, opening))
        self._thread = threading.Thread(target=run, name="jaxspec-infeed", daemon=True)
        try:
            self._thread.start()
            while not concurrent.futures.wait([opening], _CHECK_SECS).done:
                check_interrupt()
            self.first = opening.result()
        except BaseException:
            self.close(_INTERRUPTED_JOIN_SECS)
            raise
        self.position = self._source.position
        """Where the input goes on; None: at its beginning, or where it stands."""
        self.batch_size = self._source.checker.batch_size
        """The rows of a full batch of this process; None if there is no batch that says so."""

    @property
    def rows_per_shard(self) -> int:
        """The rows of a full shard."""
        assert self.batch_size is not None
        return self.batch_size // self._request.num_shards

    @property
    def bytes_in_stack(self) -> int:
        """What a batch takes in a stack."""
        assert self.first is not None
        size = _bytes(self.first.data)
        shards = self._request.num_shards
        return 4 * self.first.rows if self.resident and gathers_alone(size // shards) else size

    def first_shard(self) -> PyTree:
        """(features, labels) of the first shard of the first batch, for init_fn. A copy."""
        assert self.first is not None
        rows = min(self.rows_per_shard, self.first.rows)
        # What is computed from it may still read it when the input writes to its arrays again.
        return jax.tree.map(lambda x: np.array(x[:rows]), self.first.data)

    def ready(self) -> bool:
        """Whether `count_ready` would answer at once."""
        return self._queue.ready()

    def start(self, capacity: int, most: int | None = None) -> None:
        """Begins to prefetch, in stacks of `capacity` batches.

        Args:
          most: how many are taken at once; None: `capacity`. No more are read ahead of a lent iterator.
        """
        if most is not None and self._source.lent:
            capacity = min(capacity, most)
        self._queue.begin(capacity, StackPlacement(self._request.devices))
        self._warnings.starts()
        self._started.set()

    def count_ready(self, most: int, give_up: Callable[[], bool] = lambda: False) -> int:
        """How many batches `take(most)` gives at once: full ones of one stack, or one ragged batch.

        Waits for the input, but only until `give_up()` is true. 0: it gave up, or the input has ended. An exception of
        the input is raised here, once the batches before it have been taken.
        """
        if self._source.lent:
            # In evaluation, batches that are fetched ahead may never be used.
            most = most if self._request.training else 1
            self._queue.ask(self._taken + most)
        self._warnings.taken(self._taken)
        while not (ready := self._queue.count_ready(most, _PATIENCE_SECS)):
            if give_up():
                return 0
            self._warnings.taken(self._taken)
        if isinstance(ready, End):
            if ready.error is not None:
                raise ready.error
            if not self.ended:
                self._warnings.ended(self._taken)
            self.ended = True
            return 0
        return ready

    def next_shapes(self) -> str:
        """The shapes and dtypes of what `take` gives next, after `count_ready` found some, for messages."""
        return self._queue.next_shapes()

    def take(self, count: int) -> Slice | InputBatch:
        """The next `count` batches of one stack, or one ragged batch, after `count_ready` has found so many."""
        item = self._queue.take(count)
        self._taken += 1 if isinstance(item, InputBatch) else item.count
        return item

    def keep_memory(self) -> None:
        """Lets the next training write to the memory of resident arrays: all dispatches are done."""
        self._keeps_memory = True

    def close(self, patience_secs: float = _JOIN_SECS) -> None:
        """Stops the thread, which closes the input. Batches that were not taken are lost, but for a lent iterator.

        A second call does nothing: a thread that did not end in time the first time is left alone.
        """
        if self._closed:
            return
        self._closed = True
        self._queue.stop()
        self._started.set()
        if self._thread is threading.current_thread() or self._thread.ident is None:
            return  # collected as garbage within the thread, or never started
        self._thread.join(timeout=patience_secs)
        if self._thread.is_alive():
            busy = "input_fn has been busy for %d s and cannot be interrupted; its thread is left to finish."
            _logger.warning(busy, patience_secs)
            return
        self._memory.buffers = self._queue.spare_buffers()
        if self._request.training:
            self._memory.used_up = self.ended
            self._memory.resident = self._resident_memory if self._keeps_memory else ()
        if self._source.lent:
            self._source.remember(self._queue.left_over())
        if (error := self._close_error) is not None:
            _logger.warning(
                "input_fn (%s): closing the input failed: %s: %s",
                *(self._request.name, type(error).__name__, error),
                exc_info=error,
            )

    def _put_blocks(self) -> None:
        """Puts many batches at a time, if the input can give them so, until there are no more full ones."""
        arrays = self._arrays
        if arrays is None:
            return
        resident = None
        if self.resident:
            _logger.info(
                "numpy_input_fn keeps its arrays on the devices for this training: %.1f MB on each of %d.",
                *(_bytes(arrays) / 2**20, len(self._request.devices)),
            )
            memory, self._memory.resident = self._memory.resident, ()
            resident = ResidentArrays(arrays, self._queue.placement, memory)
            self._resident_memory = resident.memory
        while not self._queue.stopped:
            room = self._queue.capacity if resident is not None else self._queue.room()
            rows, positions = self._source.next_rows(room)
            if not len(rows):
                return
            if resident is not None:
                self._queue.put_resident(resident, rows, positions)
            else:
                self._queue.put_rows(arrays, rows, positions)

    def _run(self, opening: "concurrent.futures.Future[InputBatch | None]") -> None:
        """The body of the thread. `opening` gets the first batch, or the error before it."""
        failure, batch = None, None
        try:
            batch = self._source.open()
            if self._source.lent:
                self._queue.fetch_on_demand()
            elif batch is not None:
                self._arrays = self._source.block_arrays()
                self.resident = self._arrays is not None and self._source.wants_resident(_bytes(self._arrays))
            opening.set_result(batch)
            self._started.wait()
            fetched = 1
            if self.resident and not self._queue.stopped:
                # The first batch comes out of the resident arrays like all others: one program serves for all.
                self._source.put_back()
                self._put_blocks()
                batch = self._source.fetch()
            while self._queue.may_fetch(fetched) and batch is not None:
                self._queue.put(batch, full=batch.rows == self.batch_size)
                batch, fetched = None, fetched + 1
                if fetched == 2 and not self.resident and not self._queue.stopped:
                    self._put_blocks()
                if self._queue.may_fetch(fetched):
                    batch = self._source.fetch()
        except BaseException as error:
            failure = error
        self._queue.flush()  # before the close, which may take long
        if batch is not None and self._queue.stopped:
            self._queue.put(batch, full=False)  # `close` finds it among those left over
        another = self._source.close()
        if another is not None and failure is not None:
            failure.add_note(f"and then, in closing the input: {type(another).__name__}: {another}")
        else:
            self._close_error = another
        if failure is not None and not opening.done():
            opening.set_exception(failure)
        else:
            self._queue.end(failure)


def _bytes(arrays: PyTree) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(arrays))
