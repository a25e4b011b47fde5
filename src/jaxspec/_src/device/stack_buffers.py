"""The host memory of a stack: several full batches side by side, laid out so that each device gets its part at once."""

import jax
import numpy as np

from jaxspec._src.base.types import Batch, PyTree

_ALIGNMENT = 64
"""Bytes. A CPU device reads an array that begins at a multiple in place; from any other it makes a copy."""


class StackBuffers:
    """Room for `capacity` batches like the given one. What has not been written is undefined.

    Memory is used again by `StackQueue`, once the devices have read it: new memory costs as much as the copying.

    Args:
      batch: NumPy leaves `[rows, ...]`, or their shapes and dtypes.
      num_shards: the devices that the rows of a batch are split over. They must divide the rows.
    """

    def __init__(self, batch: Batch, capacity: int, num_shards: int) -> None:
        leaves, self._structure = _flatten(batch)
        self.capacity, self.num_shards = capacity, num_shards
        self.rows = leaves[0].shape[0]
        """Of a batch."""
        self._leaves = [
            _aligned((num_shards, capacity, x.shape[0] // num_shards, *x.shape[1:]), x.dtype) for x in leaves
        ]

    def fits(self, batch: Batch, capacity: int, num_shards: int) -> bool:
        """Whether the arguments of the constructor could have been these."""
        leaves, structure = _flatten(batch)
        return (
            (capacity, num_shards) == (self.capacity, self.num_shards)
            and structure == self._structure
            and all(
                x.dtype == to.dtype and x.shape[1:] == to.shape[3:] and x.shape[0] == self.rows
                for x, to in zip(leaves, self._leaves, strict=True)
            )
        )

    def write(self, index: int, batch: Batch) -> None:
        """Copies a batch to place `index`."""
        for to, x in zip(self._leaves, jax.tree.leaves(batch), strict=True):
            to[:, index] = x.reshape(self.num_shards, *to.shape[2:])

    def gather(self, index: int, arrays: PyTree, rows: np.ndarray) -> None:
        """Copies `len(rows)` batches to the places from `index` on.

        Args:
          arrays: a tree of NumPy arrays `[examples, ...]`, of the structure and dtypes of a batch.
          rows: which examples, int `[batches, rows]`.
        """
        count = len(rows)
        of_shards = rows.reshape(count, self.num_shards, -1)
        for to, x in zip(self._leaves, jax.tree.leaves(arrays), strict=True):
            for shard in range(self.num_shards):
                out = to[shard, index : index + count].reshape(-1, *x.shape[1:])
                # "clip" writes to `out` itself; the rows are known to exist.
                np.take(x, of_shards[:, shard].reshape(-1), axis=0, out=out, mode="clip")

    def batch(self, index: int) -> Batch:
        """The batch at place `index`, `[rows, ...]`: a copy."""
        return jax.tree.unflatten(self._structure, [x[:, index].reshape(-1, *x.shape[3:]) for x in self._leaves])

    def parts(self, stop: int | None = None) -> list[PyTree]:
        """For each shard the stack's part that it gets, `[capacity, 1, rows per shard, ...]`: a view.

        Args:
          stop: how many batches; None: `capacity`.
        """
        return [
            jax.tree.unflatten(self._structure, [x[shard, :stop, None] for x in self._leaves])
            for shard in range(self.num_shards)
        ]


def aligned_copy(array: np.ndarray, memory: np.ndarray | None = None) -> np.ndarray:
    """A copy that a CPU device reads in place.

    Args:
      memory: an earlier copy, which nothing reads any more: it is overwritten if it has the same shape and dtype.
    """
    if memory is None or (memory.shape, memory.dtype) != (array.shape, array.dtype):
        memory = _aligned((1, *array.shape), array.dtype)[0]
    memory[...] = array
    return memory


def _flatten(batch: Batch) -> tuple[list[np.ndarray], jax.tree_util.PyTreeDef]:
    leaves, structure = jax.tree.flatten(batch)
    return leaves, structure


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array whose items along axis 0 are contiguous, and all begin at a multiple of `_ALIGNMENT`."""
    item = np.empty(shape[1:], dtype)
    stride = -(-item.nbytes // _ALIGNMENT) * _ALIGNMENT
    memory = np.empty(shape[0] * stride + _ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % _ALIGNMENT
    return np.ndarray(shape, dtype, memory, first, (stride, *item.strides))
