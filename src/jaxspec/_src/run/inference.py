"""One evaluation or prediction: batches through the devices, one host spec for each, exactly the rows there are."""

import collections
import logging
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxspec._src.checkpoint.store import state_arrays
from jaxspec._src.data.batch import Batch
from jaxspec._src.data.prefetch import Infeed
from jaxspec._src.data.stacks import SingleBatches, Slice
from jaxspec._src.device.gather import first_shard, join_groups, places_in_stack, specs_of_steps
from jaxspec._src.device.program import MAX_IN_FLIGHT, Program
from jaxspec._src.device.ragged_batches import Group, RaggedPrograms
from jaxspec._src.hooks.session import Session
from jaxspec._src.run.hook_calls import HookCalls, SessionStopped
from jaxspec._src.run.loss_sums import LossSums
from jaxspec._src.run.pace import Pace
from jaxspec._src.run.progress import ProgressBar
from jaxspec._src.run.signals import interrupted, raise_if_interrupted
from jaxspec._src.run.step_outputs import StepOutputs
from jaxspec._src.spec.fetch_names import fetch_names
from jaxspec._src.spec.hook import SessionRunContext
from jaxspec._src.spec.tpu_estimator_spec import TPUEstimatorSpec
from jaxspec._src.summary.writer import SummaryWriter

_logger = logging.getLogger("jaxspec")


class HostBatch(NamedTuple):
    """What came of one batch."""

    spec: TPUEstimatorSpec
    """On the host, of the whole batch; its loss is that of the batch."""
    rows: int
    loss: LossSums


def host_batch(groups: Sequence[Group]) -> HostBatch:
    """The batch whose groups, in order, these are."""
    sums = LossSums()
    for group in groups:
        if group.spec.loss is not None:
            sums.add(group.spec.loss, group.rows)
    parts = groups[0].spec.loss
    loss = None if parts is None else parts.dtype.type(sums.compute())
    return HostBatch(join_groups([group.spec for group in groups], loss), sum(group.rows for group in groups), sums)


def run_batches(
    state: Any, infeed: Infeed, full: Program, tail: RaggedPrograms, capacity: int
) -> Generator[HostBatch, None, None]:
    """Yields what came of every batch, in order. A few dispatches run ahead.

    Args:
      state: on the devices; must stay alive until the generator is closed.
      infeed: the batches, started.
      full: the program of full batches.
      tail: those of ragged batches.
      capacity: of the stacks.
    """
    num_shards = len(full.devices)
    run_tail = tail.on(state)
    number = 0
    pace, singles = Pace(), SingleBatches()
    # Generators: they fetch when they are asked.
    pending: collections.deque[Iterator[HostBatch]] = collections.deque()

    def fetch_slice(spec: TPUEstimatorSpec, item: Slice, began: float) -> Iterator[HostBatch]:
        host = jax.device_get(spec)
        pace.done(item.stop - item.start, began)
        for one in specs_of_steps(host, item.start, item.stop, rows_per_shard=infeed.rows_per_shard):
            yield host_batch([Group(one, infeed.rows_per_shard * num_shards)])

    def fetch_tail(fetch: Callable[[], list[Group]]) -> Iterator[HostBatch]:
        yield host_batch(fetch())

    while True:
        while pending and not infeed.ready():
            # The input may wait for these results.
            yield from pending.popleft()
        if (item := infeed.take(min(capacity, pace.most), interrupted)) is None:
            raise_if_interrupted()
            break
        if isinstance(item, Batch):
            pending.append(fetch_tail(run_tail(item.data, number)))
            number += 1
        else:
            item = singles.alone(item)
            place = places_in_stack(number - item.start, 0, item.capacity, num_shards)
            began = pace.clock()
            _, spec = full(state, (*item.data, place), item.start, item.stop)
            pending.append(fetch_slice(spec, item, began))
            number += item.stop - item.start
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
        batches: Iterator[HostBatch],
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
    def next_batch(self, use: Callable[[TPUEstimatorSpec, int, LossSums], None]) -> HostBatch | None:
        """The next batch, after `use` and the hooks' `after_run`; None when there is no more."""
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
            self._last = StepOutputs(batch.spec, self._shard, np.asanyarray)
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
