"""Batches in: what input_fn yields, checked, converted and stacked for the devices."""

import dataclasses
import functools
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from .arrays import describe_array, named_leaves, path_name
from .callables import call_by_name, describe
from .position import decode_position, encode_position
from .spec import ModeKeys

_logger = logging.getLogger("jaxspec")
_PREFETCHED_STACKS = 2
_PATIENCE_SECS = 0.02
"""How long a full stack is waited for before one that is not full is taken."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """One checked batch: (features, labels) with NumPy leaves `[rows, ...]`."""

    data: tuple[Any, Any]
    rows: int
    position: str | None
    """What the input's `get_state` said after this batch, encoded; None where it has none."""


@dataclasses.dataclass
class Stack:
    """Full batches, ready for one dispatch: leaves `[capacity, shards, rows per shard, ...]`; `count` are filled."""

    data: tuple[Any, Any]
    count: int
    positions: list[str | None]
    taken: int = 0


@dataclasses.dataclass(frozen=True)
class Slice:
    """Batches `start` to `stop - 1` of a stack."""

    data: tuple[Any, Any]
    start: int
    stop: int
    position: str | None


class Infeed:
    """The batches of one call of input_fn. A helper thread prepares them ahead.

    The first batch is fetched at once: `first` is None when there is none. `start` begins the prefetching, `take`
    gives what to run next.

    Args:
      source: what input_fn returned.
      mode: a `ModeKeys` value.
      num_shards: the devices that this process feeds.
      batch_size: rows this process must yield; None: as many as the first batch has.
      ragged: whether batches of another size are allowed (never so in training on several shards).
      limit: the most batches to ask for; None: all.
      position: where to go on, for a source that has `get_state` and `set_state`.
    """

    def __init__(
        self,
        source: Any,
        *,
        mode: str,
        num_shards: int,
        batch_size: int | None,
        ragged: bool,
        limit: int | None = None,
        position: str | None = None,
    ) -> None:
        self.position = position
        self._iterator, self._reporter = _iterate(source)
        if position is not None and self._reporter is not None:
            self._reporter.set_state(decode_position(position))
        self._mode, self._num_shards, self._ragged = mode, num_shards, ragged
        self._left = limit
        self._number = 0
        self._narrowed: set[str] = set()
        self._reference: dict[str, np.ndarray] | None = None
        self._structure: Any = None
        self.batch_size = batch_size
        self._items: queue.Queue[Any] = queue.Queue(_PREFETCHED_STACKS)
        self._stop = threading.Event()
        self._closed = False
        self._filling: Stack | None = None
        self._lock = threading.Lock()  # of `_filling`
        self._thread: threading.Thread | None = None
        self._current: Any = None
        try:
            self.first = self._fetch()
        except BaseException:
            self._close_source()
            raise

    @property
    def rows_per_shard(self) -> int:
        """The rows of a full shard."""
        assert self.batch_size is not None
        return self.batch_size // self._num_shards

    def first_shard(self) -> tuple[Any, Any]:
        """The first shard of the first batch: what init_fn gets."""
        assert self.first is not None
        rows = min(self.rows_per_shard, self.first.rows)
        # A copy: what is computed from it may still read it when the input changes its buffer.
        data: tuple[Any, Any] = jax.tree.map(lambda x: np.array(x[:rows]), self.first.data)
        return data

    def ready(self) -> bool:
        """Whether `take` would answer at once."""
        return self._current is not None or not self._items.empty()

    def start(self, capacity: int) -> None:
        """Begins to prepare stacks of `capacity` batches."""
        self._thread = threading.Thread(target=self._produce, args=(capacity,), name="jaxspec-infeed", daemon=True)
        self._thread.start()

    def take(self, most: int, give_up: Callable[[], bool] = lambda: False) -> "Slice | Batch | None":
        """Up to `most` full batches that lie in one stack; or one ragged batch; or None at the end of the input.

        Waits for the input, but no longer than until `give_up()`; then it gives None too. An exception in the input is raised here, when the batches before it have been taken.
        """
        while self._current is None:
            try:
                self._current = self._items.get(timeout=_PATIENCE_SECS)
            except queue.Empty:
                # The input is slow, or waits for our answer: what there is will do.
                self._current = self._unfinished_stack()
                if self._current is None and give_up():
                    return None
        if isinstance(self._current, BaseException):
            raise self._current
        if self._current is _END:
            return None
        if isinstance(self._current, Batch):
            batch, self._current = self._current, None
            return batch
        stack = self._current
        start, stop = stack.taken, min(stack.taken + most, stack.count)
        stack.taken = stop
        if stop == stack.count:
            self._current = None
        return Slice(stack.data, start, stop, stack.positions[stop - 1])

    def _unfinished_stack(self) -> Stack | None:
        with self._lock:
            # Full ones come first; the producer puts them without the lock.
            if not self._items.empty():
                return None
            stack, self._filling = self._filling, None
        return stack

    def close(self, patience_secs: float = 10) -> None:
        """Stops the thread, which is waited for no longer than that, and closes the input. Batches not taken are lost."""
        if self._closed:
            return
        self._closed = True
        self._stop.set()
        if self._thread is None:
            self._close_source()
        else:
            self._thread.join(timeout=patience_secs)
            if self._thread.is_alive():
                _logger.warning("input_fn is busy still and cannot be interrupted; its thread is left to finish.")

    def _close_source(self) -> None:
        close = getattr(self._iterator, "close", None)
        if callable(close):
            close()

    # What follows runs in the helper thread, but for the first batch.

    def _produce(self, capacity: int) -> None:
        end: Any = _END
        batch = self.first
        try:
            while batch is not None and not self._stop.is_set():
                if batch.rows != self.batch_size:
                    self._put_filling()
                    # A copy, as for stacks: the input may use its buffer again.
                    self._put(dataclasses.replace(batch, data=jax.tree.map(np.array, batch.data)))
                elif self._stacked(batch, capacity) == capacity:
                    self._put_filling()
                batch = self._fetch()
        except BaseException as error:
            end = error
        try:
            self._close_source()
        except BaseException as error:
            end = error
        self._put_filling()
        self._put(end)

    def _stacked(self, batch: Batch, capacity: int) -> int:
        """Copies a full batch into the stack that is being filled; returns how many that holds."""
        with self._lock:
            if self._filling is None:
                self._filling = Stack(self._empty_stack(batch, capacity), 0, [])
            stack = self._filling
            jax.tree.map(functools.partial(self._copy, index=stack.count), stack.data, batch.data)
            stack.positions.append(batch.position)
            stack.count += 1
            return stack.count

    def _put_filling(self) -> None:
        # One stack at a time is between `_filling` and the queue, and only this thread fills another: while it is, a
        # consumer finds neither and waits, so the order is kept.
        with self._lock:
            stack, self._filling = self._filling, None
        if stack is not None:
            self._put(stack)

    def _put(self, item: Any) -> None:
        """Waits for room in the queue, or until nobody wants the item any more."""
        while not self._stop.is_set():
            try:
                self._items.put(item, timeout=0.05)
            except queue.Full:
                continue
            return

    def _empty_stack(self, batch: Batch, capacity: int) -> tuple[Any, Any]:
        lead = (capacity, self._num_shards, self.rows_per_shard)
        # A new one each time: a device may still read the last one, on a CPU without a copy of its own.
        data: tuple[Any, Any] = jax.tree.map(lambda x: np.zeros((*lead, *x.shape[1:]), x.dtype), batch.data)
        return data

    @staticmethod
    def _copy(to: np.ndarray, x: np.ndarray, *, index: int) -> None:
        to[index] = x.reshape(to.shape[1:])

    def _fetch(self) -> Batch | None:
        if self._left == 0:
            return None
        batch = None
        while batch is None or (batch.rows == 0 and self._ragged):  # a filter may leave nothing of a batch
            try:
                element = next(self._iterator)
            except StopIteration:
                return None
            except BaseException as error:
                error.add_note(f"raised by input_fn at batch {self._number} (counted from 0)")
                raise
            # At once, and as text: the next batch will change it.
            position = encode_position(self._reporter.get_state()) if self._reporter is not None else None
            batch = self._check(element, position)
            self._number += 1
        if self._left is not None:
            self._left -= 1
        return batch

    def _check(self, element: Any, position: str | None) -> Batch:
        features, labels = split_element(element)
        if self._mode == ModeKeys.PREDICT:
            labels = None
        data = jax.tree_util.tree_map_with_path(self._convert, {"features": features, "labels": labels})
        if self._number == 0 and self._narrowed:
            _logger.warning(
                "input_fn yields 64-bit arrays, which become 32-bit: %s. Enable jax_enable_x64 to keep them.",
                ", ".join(sorted(self._narrowed)),
            )
        leaves = named_leaves(data)
        if not leaves:
            raise ValueError(f"{self._where()}: no array in it; yield features, or (features, labels).")
        sizes = {name: leaf.shape[0] for name, leaf in leaves.items()}
        if len(set(sizes.values())) != 1:
            shown = ", ".join(f"{name}: {describe_array(leaf)}" for name, leaf in leaves.items())
            raise ValueError(f"{self._where()}: leaves disagree in their leading size, the batch: {shown}.")
        rows = next(iter(sizes.values()))
        if rows == 0 and self._ragged:
            return Batch((data["features"], data["labels"]), rows, position)
        if self._reference is None:
            self._set_reference(leaves, jax.tree.structure(data), rows)
        else:
            self._compare(leaves, jax.tree.structure(data))
        if rows != self.batch_size:
            self._check_size(rows)
        return Batch((data["features"], data["labels"]), rows, position)

    def _where(self) -> str:
        return f"batch {self._number} of input_fn (counted from 0)"

    def _set_reference(self, leaves: dict[str, np.ndarray], structure: Any, rows: int) -> None:
        self._reference, self._structure = leaves, structure
        if self.batch_size is None:
            self.batch_size = rows
        if self.batch_size % self._num_shards:
            raise ValueError(
                f"{self._where()} has {rows} rows, which {self._num_shards} shards do not divide. Yield a multiple of "
                f"{self._num_shards} rows."
            )

    def _compare(self, leaves: dict[str, np.ndarray], structure: Any) -> None:
        assert self._reference is not None
        problems = [
            f"{name}: {describe_array(leaf)}, was {describe_array(self._reference[name])}"
            for name, leaf in leaves.items()
            if name in self._reference
            and (leaf.dtype, leaf.shape[1:]) != (self._reference[name].dtype, self._reference[name].shape[1:])
        ]
        problems += [f"{name}: not in the first batch" for name in leaves if name not in self._reference]
        problems += [f"{name}: missing" for name in self._reference if name not in leaves]
        if not problems and structure != self._structure:
            problems = [f"structure {structure}, was {self._structure}"]
        if problems:
            raise ValueError(
                f"{self._where()} differs from the first batch: {'; '.join(problems)}. All batches must have the same "
                "leaves, shapes and dtypes, but for the number of rows in evaluation and prediction."
            )

    def _check_size(self, rows: int) -> None:
        assert self.batch_size is not None
        assert self._reference is not None
        if not self._ragged:
            raise ValueError(
                f"{self._where()} has {rows} rows, expected {self.batch_size} (leaf {next(iter(self._reference))}). In "
                "training every batch must have params['batch_size'] rows: leave out a short last batch "
                "(drop_remainder), as numpy_input_fn does."
            )
        if rows > self.batch_size and self._num_shards > 1:
            raise ValueError(
                f"{self._where()} has {rows} rows. The real batch size should not be greater than batch_size, "
                f"{self.batch_size}: yield at most params['batch_size'] rows."
            )

    def _convert(self, path: Any, leaf: Any) -> np.ndarray:
        name = path_name(path)
        if hasattr(leaf, "toarray") and not hasattr(leaf, "dtype"):
            raise TypeError(f"{self._where()}: {name} is sparse ({type(leaf).__name__}); make it dense first.")
        array = np.asarray(leaf)
        if array.dtype.kind in "OSUMm":
            raise TypeError(
                f"{self._where()}: {name} has dtype {array.dtype} ({type(leaf).__name__}); devices take numbers only. "
                "Map strings to integer ids, pad ragged rows and make sparse matrices dense in input_fn."
            )
        if array.ndim == 0:
            raise ValueError(
                f"{self._where()}: {name} is a scalar ({leaf!r}); every leaf needs a leading batch axis. Put constants "
                "into params."
            )
        dtype = jax.dtypes.canonicalize_dtype(array.dtype)
        if dtype == array.dtype:
            return array
        self._narrowed.add(name)
        if array.dtype.kind in "iu" and array.size:
            info = np.iinfo(dtype)
            if array.max() > info.max or array.min() < info.min:
                raise OverflowError(
                    f"{self._where()}: {name} is {array.dtype} and holds values that {dtype} cannot. Enable "
                    "jax_enable_x64, or map the values to a smaller range."
                )
        return array.astype(dtype)


class _End:
    """The end of the input."""


_END = _End()


def split_element(element: Any) -> tuple[Any, Any]:
    """(features, labels) of one element: a plain tuple of two is that pair, anything else is features."""
    if type(element) is tuple:
        if len(element) != 2:
            raise ValueError(
                f"input_fn should return (features, labels) as a len 2 tuple, got a tuple of {len(element)}. Put several "
                "features into a dict."
            )
        return element
    return element, None


def _iterate(source: Any) -> tuple[Iterator[Any], Any]:
    """(an iterator over the elements, the object that reports the position or None)."""
    if source is None:
        raise ValueError("input_fn returned None; return an iterable of batches, or one batch.")
    if hasattr(source, "as_numpy_iterator"):
        source = source.as_numpy_iterator()
    is_batch = isinstance(source, dict | np.ndarray | jax.Array | np.generic) or type(source) is tuple
    if is_batch or (not isinstance(source, Iterable) and not hasattr(source, "__getitem__")):
        if not is_batch and np.asarray(source).dtype == object:
            raise TypeError(
                f"input_fn returned {type(source).__name__}; return an iterable of batches, or one batch (an array, a dict "
                "or a (features, labels) tuple)."
            )
        return iter([source]), None
    iterator = iter(source)
    reports = hasattr(iterator, "get_state") and hasattr(iterator, "set_state")
    return iterator, iterator if reports else None


def call_input_fn(input_fn: Callable[..., Any], available: dict[str, Any]) -> Any:
    """Calls input_fn with what it names of `params`, `mode` and `config`; its exception comes back as itself."""
    try:
        return call_by_name(input_fn, available)
    except BaseException as error:
        error.add_note(f"raised by input_fn ({describe(input_fn)})")
        raise
