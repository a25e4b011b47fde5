"""Runs batches that are not full at their exact size, without padding: full shards first, then the other rows."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from jaxspec._src.base.types import Batch
from jaxspec._src.device.mapping import on_devices
from jaxspec._src.device.program import Program
from jaxspec._src.device.shards import places_in_stack, stack_of_one
from jaxspec._src.spec.tpu_estimator_spec import TPUEstimatorSpec
from jaxspec._src.step.state import TrainState


class Group(NamedTuple):
    """Shards of one batch that ran together, all with the same number of rows."""

    spec: TPUEstimatorSpec
    """On the devices, as a `Program` returns it. In evaluation its loss is in parts."""
    rows: int
    """Of all its shards."""
    shards: int


class RaggedPrograms:
    """Runs a step on ragged batches: the devices compute the rows of the batch, and no filler rows.

    A batch of `r` rows, at `b` rows a shard, runs as at most two groups. The first `r // b` shards are full, and run on
    as many devices. The last `r % b` rows are one shard of their own, on the first device. A program is made for each
    number of devices, and compiled for each number of rows, when a batch first needs it.

    Args:
      step: `(state, features, labels, place) -> spec`.
      devices: the devices of full batches.
      rows_per_shard: `b`.
    """

    def __init__(self, step: Callable[..., TPUEstimatorSpec], devices: Sequence[jax.Device], rows_per_shard: int):
        self._step, self._devices, self._rows_per_shard = step, tuple(devices), rows_per_shard
        self._programs: dict[int, Program] = {}

    def on(self, state: TrainState, shards_before: int = 0) -> Callable[[Batch, int], list[Group]]:
        """A function that dispatches a batch, given its leaves `[rows, ...]` and its number, on `state`.

        It returns the groups of the batch, in order, and does not wait for the devices.

        Args:
          shards_before: the shards of the processes before this one.
        """
        states: dict[int, TrainState] = {}

        def dispatch(batch: Batch, number: int) -> list[Group]:
            batch_rows = jax.tree.leaves(batch)[0].shape[0]
            full_shards = batch_rows // self._rows_per_shard if len(self._devices) > 1 else 0
            full_rows = full_shards * self._rows_per_shard
            groups: list[Group] = []
            for start, stop, shards in ((0, full_rows, full_shards), (full_rows, batch_rows, 1)):
                if start == stop:
                    continue
                if shards not in self._programs:
                    self._programs[shards] = Program(self._step, self._devices[:shards], trains=False, single_step=True)
                if shards not in states:
                    states[shards] = on_devices(state, self._devices[:shards])
                stack = stack_of_one(jax.tree.map(lambda x, start=start, stop=stop: x[start:stop], batch), shards)
                place = places_in_stack(number, shards_before + (full_shards if start else 0), 1, shards)
                _, spec = self._programs[shards](states[shards], (*stack, place), 0, 1)
                groups.append(Group(spec, stop - start, shards))
            return groups

        return dispatch
