"""The host memory of stacks."""

import jax
import numpy as np
import pytest

from jaxspec._src.device.stack_buffers import StackBuffers
from jaxspec._src.device.stack_placement import StackPlacement, fits_on_devices

BATCH = {"a": np.arange(12, dtype=np.float32).reshape(6, 2), "b": np.arange(6, dtype=np.int32)}


def assert_equal(tree, expected):
    jax.tree.map(np.testing.assert_array_equal, tree, expected)


@pytest.mark.parametrize("num_shards", [1, 2, 3])
def test_batches_come_out_as_they_went_in_and_on_the_devices_too(num_shards):
    buffers = StackBuffers(BATCH, 4, num_shards)
    for index in range(4):
        buffers.write(index, jax.tree.map(lambda x, index=index: x + index, BATCH))
    assert_equal(buffers.batch(2), jax.tree.map(lambda x: x + 2, BATCH))
    placed = StackPlacement(jax.devices()[:num_shards]).of_host(buffers)
    assert placed["a"].shape == (4, num_shards, 6 // num_shards, 2)
    assert_equal(np.asarray(placed["a"])[3].reshape(6, 2), BATCH["a"] + 3)
    assert_equal([shard.index[1].start or 0 for shard in placed["b"].addressable_shards], list(range(num_shards)))


def test_a_cpu_device_reads_the_memory_in_place():
    buffers = StackBuffers(BATCH, 4, 2)
    placed = StackPlacement(jax.devices()[:2]).of_host(buffers)
    for part, shard in zip(buffers.parts(), placed["a"].addressable_shards, strict=True):
        assert shard.data.unsafe_buffer_pointer() == part["a"].ctypes.data


def test_rows_are_gathered_shard_by_shard():
    buffers = StackBuffers(BATCH, 3, 2)
    buffers.gather(1, BATCH, np.array([[5, 0, 1, 1, 2, 3], [4, 4, 3, 2, 1, 0]]))
    assert_equal(buffers.batch(1)["b"], [5, 0, 1, 1, 2, 3])
    assert_equal(buffers.batch(2)["a"], BATCH["a"][[4, 4, 3, 2, 1, 0]])


def test_it_fits_batches_of_the_same_kind_only():
    buffers = StackBuffers(BATCH, 3, 2)
    assert buffers.fits(BATCH, 3, 2)
    assert not buffers.fits(BATCH, 4, 2)
    assert not buffers.fits({"a": BATCH["a"]}, 3, 2)
    assert not buffers.fits({**BATCH, "b": BATCH["b"].astype(np.float32)}, 3, 2)
    assert not buffers.fits(jax.tree.map(lambda x: x[:4], BATCH), 3, 2)


def test_small_arrays_fit_on_devices_and_enormous_ones_do_not():
    assert fits_on_devices(1000, jax.devices()[:2])
    assert not fits_on_devices(2**50, jax.devices()[:2])
