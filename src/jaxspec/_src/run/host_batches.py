"""Runs the batches of evaluate and predict on the devices, and yields a host spec for each, without padding."""

import collections
import functools
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
from jaxspec._src.device.shards import fetch, join_groups, places_in_stack, specs_of_steps, start_fetch
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


def host_batch(specs: Sequence[TPUEstimatorSpec], rows: Sequence[int]) -> HostBatch:
    """The batch whose groups of shards, in order, have these host specs and numbers of rows."""
    sums = EvaluationLoss()
    parts = specs[0].loss
    if parts is None:
        return HostBatch(join_groups(specs, None), sum(rows), sums)
    for spec, count in zip(specs, rows, strict=True):
        sums.add(np.asarray(spec.loss), count)
    return HostBatch(join_groups(specs, parts.dtype.type(sums.compute())), sum(rows), sums)


def run_batches(
    state: TrainState,
    infeed: Infeed,
    programs: ModePrograms,
    wanted: Callable[[TPUEstimatorSpec], TPUEstimatorSpec] = lambda spec: spec,
) -> Generator[HostBatch, None, None]:
    """Yields what came of every batch, in order.

    While the caller uses the batches of one dispatch, the next ones run: at most `MAX_IN_FLIGHT` of them, and as far as
    the input is ready.

    Args:
      state: on the devices; must stay alive until the generator is closed.
      infeed: the batches, started.
      programs: of the mode; `infeed` stacks as many batches as they take.
      wanted: given the outputs of a dispatch, the part that is fetched.
    """
    num_shards = len(programs.full.devices)
    shards_before = jax.process_index() * num_shards  # randomness differs between the processes
    run_ragged = programs.ragged.on(state, shards_before)
    number = 0
    pace = DispatchLength()
    in_flight: collections.deque[Callable[[], Iterator[HostBatch]]] = collections.deque()
    fetched: Iterator[HostBatch] = iter(())

    def fetch_slice(spec: TPUEstimatorSpec, item: Slice, began: float) -> Iterator[HostBatch]:
        host = fetch(spec)
        item.finish(spec)
        pace.done(item.count, began)
        rows = [infeed.rows_per_shard * num_shards]
        return (host_batch([one], rows) for one in specs_of_steps(host, item.count, infeed.rows_per_shard))

    def fetch_ragged(groups: list[Group]) -> Iterator[HostBatch]:
        specs = [next(specs_of_steps(fetch(one.spec), 1, one.rows // one.shards)) for one in groups]
        return iter([host_batch(specs, [one.rows for one in groups])])

    def dispatch() -> bool:
        """Dispatches the next batches, waiting for them; False: there are no more."""
        nonlocal number
        with doing("the input"):
            count = infeed.count_ready(min(programs.most_steps, pace.most), interrupted)
        if not count:
            raise_if_interrupted()
            return False
        item = infeed.take(count)
        if isinstance(item, InputBatch):
            groups = [one._replace(spec=wanted(one.spec)) for one in run_ragged(item.data, number)]
            started = [one.spec for one in groups]
            in_flight.append(functools.partial(fetch_ragged, groups))
        else:
            place = places_in_stack(number - item.start, shards_before, item.capacity, num_shards)
            began = pace.clock()
            try:
                _, spec = programs.full(state, (*item.data, place), item.start, item.count)
            except BaseException as error:
                item.explain(error)
                raise
            started = [wanted(spec)]
            in_flight.append(functools.partial(fetch_slice, started[0], item, began))
        for spec in started:
            start_fetch(spec, programs.full.devices)
        number += count
        return True

    more = True
    while True:
        if more and len(in_flight) < MAX_IN_FLIGHT and infeed.ready():
            more = dispatch()
        elif (batch := next(fetched, None)) is not None:
            yield batch
        elif in_flight:  # before waiting for the input, which may wait for these results
            fetched = in_flight.popleft()()
        elif more:
            more = dispatch()
        else:
            return
