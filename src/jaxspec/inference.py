"""One evaluation or prediction: batches through the devices, one host spec for each, exactly the rows there are."""

import collections
import logging
import math
from collections.abc import Callable, Generator, Iterator
from typing import Any

import jax
import numpy as np

from .checkpoint import state_arrays
from .hooks.calls import HookCalls, SessionStopped
from .hooks.session import Session
from .hooks.session_run_hook import SessionRunContext
from .hostcall import join_shards, steps_of
from .infeed import Batch, Infeed, Slice
from .outputs import StepOutputs, fetch_names
from .pace import Pace
from .progress import ProgressBar
from .replicate import MAX_IN_FLIGHT, Loop, first_shard
from .signals import interrupted, raise_if_interrupted
from .spec import TPUEstimatorSpec
from .summary import SummaryWriter

_logger = logging.getLogger("jaxspec")


class TailLoop:
    """A step for batches that are not full: no row is invented that a user could see, and none is left out.

    Of `r` rows at `b` rows a shard, the first `r // b` shards run in the program of full batches; the other shards
    get copies of them, with weight 0, and their outputs are thrown away whole. The last `r % b` rows run once, on
    one device, at their exact shape.

    Args:
      full: the loop of full batches, over `len(full.devices)` shards.
      single: a loop of the same step over one device.
      rows_per_shard: b.
      capacity: that of the stacks that `full` takes.
    """

    def __init__(self, full: Loop, single: Loop, rows_per_shard: int, capacity: int) -> None:
        self._full, self._single = full, single
        self._rows_per_shard, self._capacity = rows_per_shard, capacity

    def __call__(self, state: Any, batch: Batch) -> Callable[[], TPUEstimatorSpec]:
        """Dispatches the batch; the result fetches its host spec."""
        num_shards = len(self._full.devices)
        shards = batch.rows // self._rows_per_shard if num_shards > 1 else 0
        rows = shards * self._rows_per_shard
        first = rest = None
        if shards:
            _, first = self._full(state, self._filled(batch, shards), 0, 1)
        if rows < batch.rows:
            tail = jax.tree.map(lambda x: x[None, None, rows:], batch.data)
            _, rest = self._single(state, (*tail, np.full((1, 1), batch.rows - rows, np.float32)), 0, 1)

        def fetch() -> TPUEstimatorSpec:
            return join_shards(jax.device_get(first), shards, rows, jax.device_get(rest), batch.rows - rows)

        return fetch

    def _filled(self, batch: Batch, shards: int) -> tuple[Any, Any, Any]:
        num_shards, rows = len(self._full.devices), self._rows_per_shard
        order = np.arange(num_shards) % shards

        def fill(x: np.ndarray) -> np.ndarray:
            stack = np.zeros((self._capacity, num_shards, rows, *x.shape[1:]), x.dtype)
            stack[0] = x[: shards * rows].reshape(shards, rows, *x.shape[1:])[order]
            return stack

        features, labels = jax.tree.map(fill, batch.data)
        weight = np.where(np.arange(num_shards) < shards, np.float32(rows), np.float32(0))
        return features, labels, np.broadcast_to(weight, (self._capacity, num_shards))


def run_batches(
    state: Any, infeed: Infeed, full: Loop, tail: TailLoop, capacity: int
) -> Generator[tuple[TPUEstimatorSpec, int], None, None]:
    """Yields (host spec, rows) of every batch, in order. A few dispatches run ahead.

    Args:
      state: on the devices; must stay alive until the generator is closed.
      infeed: the batches, started.
      full: the loop of full batches.
      tail: that of others.
      capacity: of the stacks.
    """
    rows = infeed.rows_per_shard
    num_shards = len(full.devices)
    weight = np.full((capacity, num_shards), rows, np.float32)
    pace = Pace()
    # Generators: they fetch when they are asked.
    pending: collections.deque[Iterator[tuple[TPUEstimatorSpec, int]]] = collections.deque()

    def fetch_slice(spec: TPUEstimatorSpec, item: Slice, began: float) -> Iterator[tuple[TPUEstimatorSpec, int]]:
        host = jax.device_get(spec)
        pace.done(item.stop - item.start, began)
        for one in steps_of(host, item.start, item.stop):
            yield one, rows * num_shards

    def fetch_tail(fetch: Callable[[], TPUEstimatorSpec], count: int) -> Iterator[tuple[TPUEstimatorSpec, int]]:
        yield fetch(), count

    while True:
        while pending and not infeed.ready():
            # The input may wait for these results.
            yield from pending.popleft()
        if (item := infeed.take(min(capacity, pace.most), interrupted)) is None:
            raise_if_interrupted()
            break
        if isinstance(item, Batch):
            pending.append(fetch_tail(tail(state, item), item.rows))
        else:
            began = pace.clock()
            _, spec = full(state, (*item.data, weight), item.start, item.stop)
            pending.append(fetch_slice(spec, item, began))
        while len(pending) > MAX_IN_FLIGHT - 1:
            yield from pending.popleft()
    while pending:
        yield from pending.popleft()


class InferenceRun:
    """Takes batches with the hooks around each.

    Args:
      batches: what `run_batches` yields.
      hooks: with `begin` called.
      step: the global step behind the state.
      state: what is evaluated.
      lend: gives the state to a hook, which may keep it.
      shard: the spec of one shard as it leaves the device, with shapes for leaves.
      writer: of the event files, for hooks.
      bar: the progress bar, or None.
      limit: batches to take at most; None: all.
    """

    def __init__(
        self,
        batches: Iterator[tuple[TPUEstimatorSpec, int]],
        *,
        hooks: HookCalls,
        step: int,
        state: Any,
        lend: Callable[[], Any],
        shard: TPUEstimatorSpec,
        writer: SummaryWriter | None = None,
        bar: ProgressBar | None = None,
        limit: int | None = None,
    ) -> None:
        self._batches, self._hooks, self._shard, self._limit, self._bar = batches, hooks, shard, limit, bar
        self._last: StepOutputs | None = None
        self._number, self._stop = 0, False
        self._session = Session(
            global_step=lambda: step,
            state=lend,
            arrays=lambda: {name: first_shard(array) for name, array in state_arrays(state).items()},
            names=fetch_names(shard),
            outputs=lambda: self._last,
            writer=writer,
            first_step=0,
        )
        self._hooks.after_create_session(self._session)

    # Not a generator: a StopIteration of the user's would become another error in one.
    def next_batch(self, use: Callable[[TPUEstimatorSpec, int], None]) -> tuple[TPUEstimatorSpec, int] | None:
        """(host spec, rows) of the next batch, after `use` and the hooks' `after_run`; None when there is no more."""
        if self._stop or self._number == self._limit:
            return None
        # A signal that ends a training ends what it evaluates, too; else Ctrl-C comes by itself.
        raise_if_interrupted()
        context = SessionRunContext(self._session, self._number, self._number)
        try:
            asked = self._hooks.before_run(context)
            batch = next(self._batches, None)
            if batch is None:
                return None
            self._last = StepOutputs(batch[0], self._shard, np.asarray)
            use(*batch)
            self._hooks.after_run(context, asked)
        except SessionStopped:
            return None
        self._number += 1
        self._tell(self._number)
        self._stop = context.stop_requested
        return batch

    def end(self) -> None:
        """Calls `end` of each hook."""
        self._hooks.end(self._session)

    def _tell(self, number: int) -> None:
        if self._bar is not None:
            self._bar.update(number)
        elif self._limit is not None and number % math.ceil(self._limit / 10) == 0:
            _logger.info("Evaluation [%d/%d]", number, self._limit)
