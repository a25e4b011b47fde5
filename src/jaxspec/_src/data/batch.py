"""One element of the input -> one checked batch of NumPy arrays."""

import dataclasses
import itertools
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from jaxspec._src.base.arrays import describe_array, named_leaves, path_name
from jaxspec._src.spec.mode import ModeKeys

_logger = logging.getLogger("jaxspec")


@dataclasses.dataclass(frozen=True)
class Batch:
    """One checked batch: (features, labels) with NumPy leaves `[rows, ...]`."""

    data: tuple[Any, Any]
    rows: int
    position: str | None = None
    """What the input's `get_state` said after this batch, encoded; None where it has none."""


class BatchChecker:
    """Turns the elements of one input into batches, and compares each with the first.

    Args:
      mode: a `ModeKeys` value.
      num_shards: the devices that this process feeds.
      batch_size: rows this process must yield; None: as many as the first batch has.
      ragged: whether batches of another size are allowed (never so in training on several shards).
    """

    def __init__(self, *, mode: str, num_shards: int, batch_size: int | None, ragged: bool) -> None:
        self.batch_size = batch_size
        self.number = 0
        """Of the next batch."""
        self._mode, self._num_shards, self._ragged = mode, num_shards, ragged
        self._narrowed: set[str] = set()
        self._reference: dict[str, np.ndarray] | None = None
        self._structure: Any = None

    def leaves(self) -> dict[str, str]:
        """dtype and shape of one row of each leaf, by its path; there must have been a batch."""
        assert self._reference is not None
        return {name: f"{leaf.dtype}{list(leaf.shape[1:])}" for name, leaf in self._reference.items()}

    def check(self, element: Any) -> Batch:
        """The batch that `element` is.

        Raises:
          ValueError, TypeError, OverflowError: for what is no batch, or does not fit, naming the leaf by its path.
        """
        features, labels = split_element(element)
        if self._mode == ModeKeys.PREDICT:
            labels = None
        data = jax.tree_util.tree_map_with_path(
            self._convert, {"features": features, "labels": labels}, is_leaf=_is_plain_list
        )
        if self.number == 0 and self._narrowed:
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
        batch = Batch((data["features"], data["labels"]), rows)
        if rows or not self._ragged:
            if self._reference is None:
                self._set_reference(leaves, jax.tree.structure(data), rows)
            else:
                self._compare(leaves, jax.tree.structure(data))
            if rows != self.batch_size:
                self._check_size(rows)
        self.number += 1
        return batch

    def _where(self) -> str:
        return f"batch {self.number} of input_fn (counted from 0)"

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
            error = ValueError(
                f"{self._where()} differs from the first batch: {'; '.join(problems)}. All batches must have the same "
                "leaves, shapes and dtypes, but for the number of rows in evaluation and prediction."
            )
            if any(
                name in self._reference
                and leaf.ndim == self._reference[name].ndim
                and leaf.shape[1:] != self._reference[name].shape[1:]
                for name, leaf in leaves.items()
            ):
                error.add_note(
                    "Sequences of several lengths: pad them to one length in input_fn. There is one program for one shape."
                )
            raise error

    def _check_size(self, rows: int) -> None:
        assert self.batch_size is not None
        assert self._reference is not None
        if not self._ragged:
            is_one_shards = self._num_shards > 1 and rows * self._num_shards == self.batch_size
            raise ValueError(
                f"{self._where()} has {rows} rows, expected {self.batch_size} (leaf {next(iter(self._reference))}). In "
                "training every batch must have params['batch_size'] rows: leave out a short last batch "
                "(drop_remainder), as numpy_input_fn does."
                + f" These are the rows of one of the {self._num_shards} shards: yield the rows of all of them in one batch."
                * is_one_shards
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
        try:
            array = np.asarray(leaf)
        except ValueError as error:
            if type(leaf) is list:
                raise TypeError(
                    f"{self._where()}: {name} is a ragged list; pad its rows to one length first."
                ) from error
            error.add_note(f"raised in making a NumPy array of {name} ({type(leaf).__name__}), {self._where()}")
            raise
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
        if type(leaf) is not list:  # Python's numbers have no type that could be lost
            self._narrowed.add(name)
        if array.dtype.kind in "iu" and array.size:
            info = np.iinfo(dtype)
            if array.max() > info.max or array.min() < info.min:
                raise OverflowError(
                    f"{self._where()}: {name} is {array.dtype} and holds values that {dtype} cannot. Enable "
                    "jax_enable_x64, or map the values to a smaller range."
                )
        return array.astype(dtype)


_PLAIN = (bool, int, float, complex, str, bytes, np.generic)


def _is_plain_list(value: Any) -> bool:
    """Whether `value` is a list, or lists in a list, of numbers or strings: one array, written in Python."""
    return type(value) is list and bool(value) and all(isinstance(x, _PLAIN) or _is_plain_list(x) for x in value)


def _depth(value: Any) -> int:
    return 1 + _depth(value[0]) if type(value) is list and value else 0


def split_element(element: Any) -> tuple[Any, Any]:
    """(features, labels) of one element: of a plain tuple of two, and of a list of two, which torch's DataLoader makes of it.

    Anything else is features. A list of numbers, or of such lists, is one array; if it has two items, and these are
    nested equally deep, it is not a pair either.
    """
    kind = type(element)
    if kind is list and _is_plain_list(element) and (len(element) != 2 or _depth(element[0]) == _depth(element[1])):
        return element, None
    if kind is tuple or (kind is list and element):
        if len(element) != 2:
            raise ValueError(
                f"input_fn should return (features, labels) as a len 2 tuple, got a {kind.__name__} of {len(element)}. Put "
                "several features into a dict."
            )
        return element[0], element[1]
    return element, None


def elements(source: Any) -> Iterator[Any]:
    """An iterator over the elements of what input_fn returned: an iterable of batches, or one batch."""
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
        return iter([source])
    return iter(source)


def is_endless(iterator: Any) -> bool:
    """Whether an iterator is known to have always another element."""
    return isinstance(iterator, itertools.cycle) or getattr(iterator, "endless", False) is True
