"""numpy_input_fn: batches of arrays in memory, in order or shuffled, that report their position.

In several processes each one yields its rows of every global batch.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, TypeAlias

import jax
import numpy as np

from jaxspec._src.base.arrays import describe_leaves, named_leaves
from jaxspec._src.base.hyperparameters import value_of
from jaxspec._src.base.tpu_context import TPUContext
from jaxspec._src.base.types import HyperParameters, PyTree
from jaxspec._src.data.position import PositionState
from jaxspec._src.data.resume import arrays_fingerprint
from jaxspec._src.spec.mode import ModeKeys

Resident: TypeAlias = Literal["auto"] | bool


def numpy_input_fn(
    x: PyTree,
    y: PyTree = None,
    *,
    batch_size: int | None = None,
    num_epochs: int | None = 1,
    shuffle: bool = False,
    seed: int = 0,
    process_local: bool = False,
    resident: Resident = "auto",
) -> Callable[..., "NumpyBatches"]:
    """An input_fn over arrays in memory.

    In several processes x and y are the whole data set, the same in each. Each process yields its rows of a global
    batch: the first process the first `params["batch_size"]` rows, the second one those that follow. So all processes
    together train on the batches, and evaluate the examples, that a single process would.

    Args:
      x: features: an array `[examples, ...]` or any tree of them.
      y: labels, likewise, with as many examples; None: batches have no labels.
      batch_size: the rows of a global batch; None: `params["batch_size"]` rows in each process.
      num_epochs: how often all examples are given; None: for ever. A batch may span two epochs.
      shuffle: whether the examples are shuffled, in each epoch anew, from `seed` and the number of the epoch. The order
        is the same in all processes.
      seed: the seed of the shuffling.
      process_local: whether x and y hold the examples of this process only, other ones in each process. Each process
        then yields batches of its own arrays. Give each the same number of examples: training ends with the shortest.
      resident: whether training keeps a copy of x and y on every device, and gathers the batches there, instead of
        sending each batch. The batches are the same. "auto": if they take less than a quarter of the free memory of a
        device, and the call of `train` reads all of them at least once. x and y must not change during the call. On CPU
        devices the memory of the copy is kept for the estimator's next training.

    Returns:
      An input_fn. In training the last batch is left out if it is short. The batches report their position, so a
      run that is killed and started again goes on with the example that follows. Another data set, or another order,
      begins at its beginning: a position counts for arrays of the same structure, dtypes, shapes and values (of arrays
      of more than 1 MiB, 1,024 rows spread over the whole are compared) in the same order. batch_size and num_epochs
      may change, and so may the number of processes, but with `process_local`.
    """
    x, y = jax.tree.map(np.asarray, (x, y))
    leaves = named_leaves((x, y))
    sizes = {leaf.shape[:1] for leaf in leaves.values()}
    if len(sizes) != 1 or () in sizes:
        shown = describe_leaves(leaves)
        raise ValueError(f"numpy_input_fn: x and y must be arrays with the same number of examples, got {shown}.")
    ((examples,),) = sizes
    if num_epochs is not None and num_epochs < 1:
        raise ValueError(f"numpy_input_fn: num_epochs must be positive or None, got {num_epochs}.")
    if resident not in ("auto", True, False):
        raise ValueError(f'numpy_input_fn: resident must be "auto", True or False, got {resident!r}.')
    if shuffle and seed is None:
        raise ValueError(
            "numpy_input_fn: seed must be a number, got None: all processes must shuffle alike, and a restart must "
            "find the same order. Leave it out (it is 0 then), or choose a number."
        )

    def input_fn(params: HyperParameters, mode: str) -> NumpyBatches:
        context = value_of(params, "context")
        host, hosts = (context.current_host, context.num_hosts) if isinstance(context, TPUContext) else (0, 1)
        size = value_of(params, "batch_size")
        if batch_size is not None:
            size, rest = divmod(batch_size, hosts)
            if rest:
                raise ValueError(
                    f"numpy_input_fn: batch_size={batch_size} rows of all processes are no multiple of the {hosts} "
                    f"processes. Choose a multiple of {hosts}."
                )
        if size is None:
            raise ValueError(
                "numpy_input_fn: no batch size: pass batch_size=, or give the estimator the batch size of this mode."
            )
        if process_local:
            host, hosts = 0, 1
        drop = mode == ModeKeys.TRAIN
        if drop and num_epochs is not None and 0 < num_epochs * examples < size * hosts:
            raise ValueError(
                f"numpy_input_fn: {examples} examples, given {num_epochs} times, are fewer than the {size * hosts} "
                "rows of one batch, and training leaves out a short batch: nothing would be trained. Choose a smaller "
                "batch size, or num_epochs=None to repeat the examples."
            )
        return NumpyBatches(x, y, size, num_epochs, seed if shuffle else None, drop, host, hosts, resident)

    return input_fn


class NumpyBatches(Iterator[PyTree]):
    """The batches of `numpy_input_fn`: a `CheckpointableIterator` of x, or of (x, y), with arrays of `batch_size`
    rows. With `num_hosts` of them these are the rows of the host numbered `host`, of global batches."""

    def __init__(
        self,
        x: PyTree,
        y: PyTree,
        batch_size: int,
        num_epochs: int | None,
        seed: int | None,
        drop_remainder: bool,
        host: int = 0,
        num_hosts: int = 1,
        resident: Resident = False,
    ) -> None:
        self._data = x if y is None else (x, y)
        self._size: int = jax.tree.leaves(x)[0].shape[0]
        self._batch_size = batch_size
        self._offset, self._global_size = host * batch_size, num_hosts * batch_size
        self._total = None if num_epochs is None else num_epochs * self._size
        self._seed = seed
        self._drop_remainder = drop_remainder
        self.resident: Resident = resident
        """As in `numpy_input_fn`."""
        self._next_row = 0
        """The first row of the next global batch, counted over the epochs."""
        self._order = (-1, np.arange(0))
        """(the current epoch, the order of its examples)."""

    @property
    def endless(self) -> bool:
        """Whether there is another batch always."""
        return self._total is None and self._size > 0

    @property
    def num_examples(self) -> int:
        """How many there are."""
        return self._size

    @property
    def arrays(self) -> PyTree:
        """All examples, in the structure of a batch: NumPy arrays `[examples, ...]`."""
        return self._data

    def next_rows(self, most: int) -> np.ndarray:
        """Takes up to `most` batches, but for a short one at the end: which examples, int `[batches, batch_size]`."""
        if self._total is not None:
            most = min(most, (self._total - self._next_row) // self._global_size)
        count = most if self._size else 0
        starts = self._next_row + self._offset + self._global_size * np.arange(count)
        rows = (starts[:, None] + np.arange(self._batch_size)).reshape(-1)
        self._next_row += count * self._global_size
        epochs, places = np.divmod(rows, self._size or 1)
        if self._seed is not None:
            # The rows are in order, so those of an epoch lie together.
            bounds = [0, *(np.flatnonzero(np.diff(epochs)) + 1), len(rows)] if count else []
            for begin, end in itertools.pairwise(bounds):
                places[begin:end] = self._epoch(int(epochs[begin]))[places[begin:end]]
        return places.reshape(count, self._batch_size)

    def put_back(self) -> None:
        """Goes back by one full batch."""
        self._next_row -= self._global_size

    def rows_given(self, batches: int) -> range:
        """How many rows all processes have given after each of the last `batches` batches, which were full."""
        return range(self._next_row - (batches - 1) * self._global_size, self._next_row + 1, self._global_size)

    def __next__(self) -> PyTree:
        end = self._next_row + self._global_size
        if self._total is not None and end > self._total:
            end = self._next_row if self._drop_remainder else self._total
        start = self._next_row + self._offset
        stop = min(start + self._batch_size, end)
        if start >= stop or not self._size:
            raise StopIteration  # the other processes may have rows of a short last batch
        self._next_row = end
        first = start % self._size
        if self._seed is None and first + (stop - start) <= self._size:
            # Rows that lie together need no index, and no copy.
            return self._rows(slice(first, first + stop - start))
        parts = []
        while start < stop:
            epoch, first = divmod(start, self._size)
            rows = min(stop - start, self._size - first)
            parts.append(self._epoch(epoch)[first : first + rows])
            start += rows
        return self._rows(parts[0] if len(parts) == 1 else np.concatenate(parts))

    def _rows(self, index: slice | np.ndarray) -> PyTree:
        return jax.tree.map(lambda a: a[index], self._data)

    def _epoch(self, epoch: int) -> np.ndarray:
        """The order of the examples in an epoch: int `[examples]`."""
        if self._seed is None:
            return np.arange(self._size)
        if self._order[0] != epoch:
            rng = np.random.default_rng([self._seed, epoch])
            self._order = (epoch, rng.permutation(self._size))
        return self._order[1]

    def fingerprint(self) -> dict[str, object]:
        """What the data and their order are recognised by. Large arrays are sampled, so that it takes no time."""
        return {"seed": self._seed, "arrays": arrays_fingerprint(self._data)}

    def get_state(self) -> dict[str, int | None]:
        """The position: how many rows all processes have given, of how many examples, in which order."""
        return {"rows": self._next_row, "of": self._size, "seed": self._seed}

    def set_state(self, state: PositionState) -> None:
        """Goes on after the position.

        Raises:
          ValueError: if it is a position in another number of examples or in another order.
        """
        if not isinstance(state, Mapping) or not {"rows", "of", "seed"} <= set(state):
            raise ValueError(f"the position {state!r} is not one of numpy_input_fn.")
        if (state["of"], state["seed"]) != (self._size, self._seed):
            raise ValueError(
                f"the position is one in {_order(state['of'], state['seed'])}, the input has "
                f"{_order(self._size, self._seed)}."
            )
        self._next_row = state["rows"]


def _order(size: int, seed: int | None) -> str:
    return f"{size} examples " + ("in order" if seed is None else f"shuffled with seed {seed}")
