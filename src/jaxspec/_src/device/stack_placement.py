"""Puts stacks of batches on the devices: from host memory, from arrays that are there already, or gathered there.

The thread of the input calls these. None of it is a collective, so the order among the devices and processes is free.
"""

import functools
import itertools
import os
from collections.abc import Sequence

import jax
import numpy as np

from jaxspec._src.base.types import Batch, PyTree
from jaxspec._src.device.mapping import local_devices_of, stack_of_parts
from jaxspec._src.device.shards import RowsOfArrays
from jaxspec._src.device.stack_buffers import StackBuffers, aligned_copy

_GATHERED_ALONE_BYTES = 64 << 10
"""A batch of so many bytes on a shard is gathered when it is used, a smaller one together with the others."""
_RESIDENT_SHARE = 0.25
"""Arrays may take this share of the memory of a device that is free."""


class StackPlacement:
    """Where stacks go: the devices that a program is mapped over, of which each process feeds its own.

    Args:
      devices: of all processes.
    """

    def __init__(self, devices: Sequence[jax.Device]) -> None:
        self.devices = tuple(devices)
        self.local_devices = local_devices_of(devices)

    @jax.transfer_guard("allow")  # batches have to reach the devices, whatever the caller forbids elsewhere
    def of_host(self, buffers: StackBuffers, stop: int | None = None) -> Batch:
        """A stack in host memory, `[capacity, shards, rows per shard, ...]` on the devices.

        A CPU device reads the memory in place: it may be written to again after the programs that read it are done.

        Args:
          stop: how many batches; None: `capacity`.
        """
        return self._placed(buffers.parts(stop))

    @jax.transfer_guard("allow")
    def of_batch(self, batch: Batch) -> Batch:
        """A batch of JAX arrays `[rows, ...]` as a stack of one. Between the devices it moves only if it must."""
        mesh = jax.sharding.Mesh(np.array(self.local_devices), ("rows",))
        split = jax.device_put(batch, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows")))
        leaves, structure = jax.tree.flatten(split)
        by_device = [{shard.device: shard.data for shard in x.addressable_shards} for x in leaves]
        parts = [
            jax.tree.unflatten(structure, [_as_stack(pieces[device]) for pieces in by_device])
            for device in self.local_devices
        ]
        return self._placed(parts)

    def _placed(self, parts: Sequence[PyTree]) -> Batch:
        on_devices = [jax.device_put(part, device) for part, device in zip(parts, self.local_devices, strict=True)]
        return stack_of_parts(on_devices, self.devices)


@jax.jit
def _as_stack(part: jax.Array) -> jax.Array:
    return part[None, None]


def gathers_alone(size: int) -> bool:
    """Whether a batch of so many bytes on a shard is gathered by the program that uses it."""
    return size >= _GATHERED_ALONE_BYTES


class ResidentArrays:
    """Arrays that every device of this process has a copy of. Stacks are gathered from them there.

    Args:
      arrays: a tree of NumPy arrays `[examples, ...]`. They are copied.
      placement: of the stacks.
      memory: the `memory` of earlier ones that nothing reads any more. It is used again if it fits.
    """

    def __init__(self, arrays: PyTree, placement: StackPlacement, memory: Sequence[np.ndarray] = ()) -> None:
        self._placement = placement
        leaves, structure = jax.tree.flatten(arrays)
        self.memory: Sequence[np.ndarray] = ()
        """The copies of a CPU device, which are in host memory."""
        if placement.devices[0].platform == "cpu":
            # The device reads them in place, and the user may write to the arrays.
            self.memory = leaves = [
                aligned_copy(*pair) for pair in itertools.zip_longest(leaves, memory[: len(leaves)])
            ]
        self._host = jax.tree.unflatten(structure, leaves)

    @jax.transfer_guard("allow")
    def stack(self, rows: np.ndarray, capacity: int) -> Batch:
        """A stack of the examples numbered by `rows`, int `[batches, rows]`. It has room for `capacity` batches.

        Small batches are gathered now, all at once. Large ones are gathered by the program, one at a time, while they
        are in the cache.
        """
        shards = len(self._placement.local_devices)
        rows_per_shard = rows.shape[1] // shards
        padded = np.zeros((shards, capacity, rows_per_shard), np.int32)
        padded[:, : len(rows)] = rows.reshape(len(rows), shards, -1).swapaxes(0, 1)
        placed = [
            jax.device_put(indices, device)
            for indices, device in zip(padded, self._placement.local_devices, strict=True)
        ]
        if gathers_alone(rows_per_shard * self._bytes_of_example):
            return RowsOfArrays(stack_of_parts([x[:, None] for x in placed], self._placement.devices), self._arrays)
        parts = [_gather(arrays, indices) for arrays, indices in zip(self._copies, placed, strict=True)]
        return stack_of_parts(parts, self._placement.devices)

    @functools.cached_property
    def _arrays(self) -> PyTree:
        """The copies as one array for each leaf, `[1, shards, examples, ...]`."""
        arrays = jax.tree.map(lambda x: x[None, None], self._host)
        copies = [jax.device_put(arrays, device) for device in self._placement.local_devices]
        return stack_of_parts(copies, self._placement.devices)

    @functools.cached_property
    def _copies(self) -> list[PyTree]:
        return [jax.device_put(self._host, device) for device in self._placement.local_devices]

    @functools.cached_property
    def _bytes_of_example(self) -> int:
        return sum(x.nbytes // max(1, x.shape[0]) for x in jax.tree.leaves(self._host))


@jax.jit
def _gather(arrays: PyTree, rows: jax.Array) -> PyTree:
    return jax.tree.map(lambda x: x.at[rows].get(mode="promise_in_bounds")[:, None], arrays)


def fits_on_devices(size: int, devices: Sequence[jax.Device]) -> bool:
    """Whether a copy of so many bytes on each of this process's devices leaves most of their free memory free."""
    local = local_devices_of(devices)
    return all(size <= _RESIDENT_SHARE * _free_bytes(device, len(local)) for device in local)


def _free_bytes(device: jax.Device, num_devices: int) -> float:
    if device.platform == "cpu":
        return _free_host_bytes() / num_devices
    stats = device.memory_stats() or {}
    return float(stats["bytes_limit"] - stats.get("bytes_in_use", 0)) if "bytes_limit" in stats else 0.0


def _free_host_bytes() -> float:
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # a platform that does not say
        return 0.0
