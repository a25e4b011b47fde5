"""Runs the batches of evaluate and predict on the devices, and yields a host spec for each, without padding."""

import collections
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxspec._src.base.activities import doing
from jaxspec._src.data.batch import InputBatch
from jaxspec._src.data.prefetch import Infeed
from jaxspec._src.data.stacks import Slice
from jaxspec._src.device.program import MAX_IN_FLIGHT
from jaxspec._src.device.ragged_batches import Group
from jaxspec._src.device.shards import join_groups, places_in_stack, specs_of_steps
from jaxspec._src.run.dispatch_length import DispatchLength
from jaxspec._src.run.evaluation_loss import EvaluationLoss
from jaxspec._src.run.program_cache import ModePrograms
from jaxspec._src.run.signals import interrupted, raise_if_interrupted
from jaxspec._src.spec.tpu_estimator_spec import TPUEstimatorSpec
from jaxspec._src.step.state import TrainState


class HostBatch(NamedTuple):
    """What came of one batch."""

    spec: TPUEstimatorSpec
    """On the host, of the whole batch; its loss is that of the batch."""
    rows: int
    loss: EvaluationLoss


def host_batch(groups: Sequence[Group]) -> HostBatch:
    """The batch whose groups, in order, these are."""
    sums = EvaluationLoss()
    for group in groups:
        if group.spec.loss is not None:
            sums.add(np.asarray(group.spec.loss), group.rows)
    parts = groups[0].spec.loss
    loss = None if parts is None else parts.dtype.type(sums.compute())
    return HostBatch(join_groups([group.spec for group in groups], loss), sum(group.rows for group in groups), sums)


def run_batches(state: TrainState, infeed: Infeed, programs: ModePrograms) -> Generator[HostBatch, None, None]:
    """Yields what came of every batch, in order. A few dispatches run ahead.

    Args:
      state: on the devices; must stay alive until the generator is closed.
      infeed: the batches, started.
      programs: of the mode; `infeed` stacks as many batches as they take.
    """
    num_shards = len(programs.full.devices)
    shards_before = jax.process_index() * num_shards  # randomness differs between the processes
    run_ragged = programs.ragged.on(state, shards_before)
    number = 0
    pace = DispatchLength()
    # Generators: they fetch when they are asked.
    pending: collections.deque[Iterator[HostBatch]] = collections.deque()

    def fetch_slice(spec: TPUEstimatorSpec, item: Slice, began: float) -> Iterator[HostBatch]:
        host = jax.device_get(spec)
        item.finish(spec)
        pace.done(item.count, began)
        for one in specs_of_steps(host, item.count, rows_per_shard=infeed.rows_per_shard):
            yield host_batch([Group(one, infeed.rows_per_shard * num_shards)])

    def fetch_ragged(fetch: Callable[[], list[Group]]) -> Iterator[HostBatch]:
        yield host_batch(fetch())

    while True:
        while pending and not infeed.ready():
            # The input may wait for these results.
            yield from pending.popleft()
        with doing("the input"):
            count = infeed.count_ready(min(programs.capacity, pace.most), interrupted)
        if not count:
            raise_if_interrupted()
            break
        item = infeed.take(count)
        if isinstance(item, InputBatch):
            pending.append(fetch_ragged(run_ragged(item.data, number)))
            number += 1
        else:
            place = places_in_stack(number - item.start, shards_before, item.capacity, num_shards)
            began = pace.clock()
            try:
                _, spec = programs.full(state, (*item.data, place), item.start, item.count)
            except BaseException as error:
                item.explain(error)
                raise
            pending.append(fetch_slice(spec, item, began))
            number += item.count
        while len(pending) > MAX_IN_FLIGHT - 1:
            yield from pending.popleft()
    while pending:
        yield from pending.popleft()
