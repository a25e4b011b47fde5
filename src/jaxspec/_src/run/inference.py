"""One evaluation or prediction: batches through the devices, one host spec for each, exactly the rows there are."""

import collections
import functools
import logging
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from jaxspec._src.checkpoint.store import state_arrays
from jaxspec._src.data.batch import Batch
from jaxspec._src.data.prefetch import Infeed
from jaxspec._src.data.stacks import SingleBatches, Slice
from jaxspec._src.device.gather import first_shard, joined, steps_of
from jaxspec._src.device.mapping import on_first
from jaxspec._src.device.program import MAX_IN_FLIGHT, Program
from jaxspec._src.hooks.session import Session
from jaxspec._src.run.dispatch_length import DispatchLength
from jaxspec._src.run.evaluation_loss import EvaluationLoss
from jaxspec._src.run.hook_calls import HookCalls, SessionStopped
from jaxspec._src.run.signals import interrupted, raise_if_interrupted
from jaxspec._src.run.step_outputs import StepOutputs
from jaxspec._src.spec.fetch_names import fetch_names
from jaxspec._src.spec.hook import SessionRunContext
from jaxspec._src.spec.tpu_estimator_spec import TPUEstimatorSpec
from jaxspec._src.summary.writer import SummaryWriter

if TYPE_CHECKING:
    from jaxspec._src.run.progress import ProgressBar

_logger = logging.getLogger("jaxspec")


class HostBatch(NamedTuple):
    """What came of one batch."""

    spec: TPUEstimatorSpec
    """On the host, of the whole batch; its loss is that of the batch."""
    rows: int
    loss: EvaluationLoss


class Group(NamedTuple):
    """Shards of a batch that were mapped together, all of the same number of rows; leaves on the host."""

    spec: TPUEstimatorSpec
    """Its loss is in parts."""
    rows: int


def host_batch(groups: Sequence[Group]) -> HostBatch:
    """The batch whose groups, in order, these are."""
    sums = EvaluationLoss()
    for group in groups:
        if group.spec.loss is not None:
            sums.add(group.spec.loss, group.rows)
    parts = groups[0].spec.loss
    loss = None if parts is None else parts.dtype.type(sums.compute())
    return HostBatch(joined([group.spec for group in groups], loss), sum(group.rows for group in groups), sums)


class TailLoop:
    """A step for batches that are not full: rows of such a batch, and nothing else, are on the devices.

    Of `r` rows at `b` rows a shard, the first `r // b` shards run as one group, mapped over as many devices. The last
    `r % b` rows run as another, on one device, at their exact shape. There is a program for each number of devices and
    of rows, made when a batch wants it.

    Args:
      step: `(state, features, labels, place) -> spec`.
      devices: those of full batches.
      rows_per_shard: b.
    """

    def __init__(self, step: Callable[..., TPUEstimatorSpec], devices: Sequence[jax.Device], rows_per_shard: int):
        self._step, self._devices, self._rows_per_shard = step, tuple(devices), rows_per_shard
        self._loops: dict[int, Program] = {}

    def on(self, state: Any) -> Callable[[Batch, int], Callable[[], HostBatch]]:
        """A function that dispatches a batch, given its number, on `state`; its result fetches what came of it."""
        states: dict[int, Any] = {}

        def dispatch(batch: Batch, number: int) -> Callable[[], HostBatch]:
            full = batch.rows // self._rows_per_shard if len(self._devices) > 1 else 0
            rows = full * self._rows_per_shard
            pending: list[tuple[TPUEstimatorSpec, int, int]] = []
            for start, stop, shards in ((0, rows, full), (rows, batch.rows, 1)):
                if start == stop:
                    continue
                size = (stop - start) // shards
                if shards not in self._loops:
                    self._loops[shards] = Program(self._step, self._devices[:shards], trains=False, rolled=False)
                if shards not in states:
                    states[shards] = on_first(state, self._devices[:shards])
                data = jax.tree.map(functools.partial(_one_stack, slice(start, stop), (1, shards, size)), batch.data)
                place = np.empty((1, shards, 2), np.int32)
                place[...] = number, full if start else 0
                _, spec = self._loops[shards](states[shards], (*data, place), 0, 1)
                pending.append((spec, size, stop - start))

            def fetch() -> HostBatch:
                return host_batch(
                    [
                        Group(next(steps_of(jax.device_get(spec), 0, 1, rows_per_shard=size)), rows)
                        for spec, size, rows in pending
                    ]
                )

            return fetch

        return dispatch


def _one_stack(rows: slice, lead: tuple[int, ...], x: np.ndarray) -> np.ndarray:
    return x[rows].reshape(*lead, *x.shape[1:])


def run_batches(
    state: Any, infeed: Infeed, full: Program, tail: TailLoop, capacity: int
) -> Generator[HostBatch, None, None]:
    """Yields what came of every batch, in order. A few dispatches run ahead.

    Args:
      state: on the devices; must stay alive until the generator is closed.
      infeed: the batches, started.
      full: the loop of full batches.
      tail: that of others.
      capacity: of the stacks.
    """
    num_shards = len(full.devices)
    run_tail = tail.on(state)
    number = 0
    pace, singles = DispatchLength(), SingleBatches()
    # Generators: they fetch when they are asked.
    pending: collections.deque[Iterator[HostBatch]] = collections.deque()

    def fetch_slice(spec: TPUEstimatorSpec, item: Slice, began: float) -> Iterator[HostBatch]:
        host = jax.device_get(spec)
        pace.done(item.stop - item.start, began)
        for one in steps_of(host, item.start, item.stop, rows_per_shard=infeed.rows_per_shard):
            yield host_batch([Group(one, infeed.rows_per_shard * num_shards)])

    def fetch_tail(fetch: Callable[[], HostBatch]) -> Iterator[HostBatch]:
        yield fetch()

    while True:
        while pending and not infeed.ready():
            # The input may wait for these results.
            yield from pending.popleft()
        if (item := infeed.take(min(capacity, pace.most), interrupted)) is None:
            raise_if_interrupted()
            break
        if isinstance(item, Batch):
            pending.append(fetch_tail(run_tail(item, number)))
            number += 1
        else:
            item = singles.alone(item)
            place = np.zeros((item.capacity, num_shards, 2), np.int32)
            place[item.start : item.stop, :, 0] = np.arange(number, number + item.stop - item.start)[:, None]
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
        bar: "ProgressBar | None" = None,
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
    def next_batch(self, use: Callable[[TPUEstimatorSpec, int, EvaluationLoss], None]) -> HostBatch | None:
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
            self._bar.show(number)
        elif self._limit is not None and number % math.ceil(self._limit / 10) == 0:
            _logger.info("Evaluation [%d/%d]", number, self._limit)
