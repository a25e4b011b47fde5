"""One element of the input as one checked batch of NumPy arrays. Pure but for its log line: no thread, no queue."""

import dataclasses
import logging
from typing import ClassVar

import jax
import numpy as np

from jaxspec._src.base.arrays import describe_array, describe_leaves, named_leaves, path_name
from jaxspec._src.base.types import PyTree
from jaxspec._src.data.elements import is_plain_list, narrowed, split_element, to_numpy
from jaxspec._src.data.input_request import InputRequest
from jaxspec._src.spec.mode import ModeKeys

_logger = logging.getLogger("jaxspec")


@dataclasses.dataclass(frozen=True)
class InputBatch:
    """One checked batch of this process."""

    data: tuple[PyTree, PyTree]
    """(features, labels), NumPy leaves `[rows, ...]`. The arrays are the input's own: it may write to them later."""
    rows: int
    position: str | None = None
    """The position of the input after this batch, as text; None if the input reports none."""

    left: ClassVar[int] = 1
    """How many batches have not been taken. (Of a `Stack` there may be several.)"""

    def rest(self) -> "list[InputBatch]":
        """The batches that have not been taken: this one."""
        return [self]


class BatchChecker:
    """Turns the elements of one input into batches, and compares each with the first.

    Args:
      request: its `mode`, `num_shards`, `batch_size` and `ragged` decide what fits.
    """

    def __init__(self, request: InputRequest) -> None:
        self.batch_size = request.batch_size
        """The rows of a full batch. None until the first batch decides it."""
        self.number = 0
        """The number of the next batch, counted from 0."""
        self._request, self._num_shards = request, request.num_shards
        self._narrowed: set[str] = set()
        self._reference: dict[str, np.ndarray] | None = None
        self._structure: jax.tree_util.PyTreeDef | None = None

    def leaves(self) -> dict[str, str]:
        """dtype and shape of one row of each leaf, by its path. There must have been a batch."""
        assert self._reference is not None
        return {name: f"{leaf.dtype}{list(leaf.shape[1:])}" for name, leaf in self._reference.items()}

    def check(self, element: PyTree) -> InputBatch:
        """The batch of an element of the input. In prediction its labels are dropped.

        Raises:
          ValueError, TypeError, OverflowError: for an element that is no batch, or differs from the first; names the
            leaf.
        """
        features, labels = split_element(element)
        if self._request.mode == ModeKeys.PREDICT:
            labels = None
        data = jax.tree_util.tree_map_with_path(
            self._convert, {"features": features, "labels": labels}, is_leaf=is_plain_list
        )
        if self.number == 0 and self._narrowed:
            _logger.warning(
                "input_fn yields 64-bit arrays, which become 32-bit: %s. Enable jax_enable_x64 to keep them.",
                ", ".join(sorted(self._narrowed)),
            )
        leaves = named_leaves(data)
        if not leaves:
            raise ValueError(f"{self._where()}: no array in it; yield features, or (features, labels).")
        rows, *others = {leaf.shape[0] for leaf in leaves.values()}
        if others:
            raise ValueError(
                f"{self._where()}: leaves disagree in their leading size, the batch: {describe_leaves(leaves)}."
            )
        batch = InputBatch((data["features"], data["labels"]), rows)
        if rows or not self._request.ragged:
            structure = jax.tree.structure(data)
            if self._reference is None:
                self._reference, self._structure = leaves, structure
            self._compare(self._reference, leaves, structure)
            self._check_size(rows, next(iter(leaves)))
        self.number += 1
        return batch

    def _where(self) -> str:
        return f"batch {self.number} of input_fn (counted from 0)"

    def _compare(
        self, first: dict[str, np.ndarray], leaves: dict[str, np.ndarray], structure: jax.tree_util.PyTreeDef
    ) -> None:
        changed = {
            name: leaf
            for name, leaf in leaves.items()
            if name in first and (leaf.dtype, leaf.shape[1:]) != (first[name].dtype, first[name].shape[1:])
        }
        problems = [
            f"{name}: {describe_array(leaf)}, was {describe_array(first[name])}" for name, leaf in changed.items()
        ]
        problems += [f"{name}: not in the first batch" for name in leaves if name not in first]
        problems += [f"{name}: missing" for name in first if name not in leaves]
        if not problems and structure != self._structure:
            problems = [f"structure {structure}, was {self._structure}"]
        if problems:
            error = ValueError(
                f"{self._where()} differs from the first batch: {'; '.join(problems)}. All batches must have the same "
                "leaves, shapes and dtypes, but for the number of rows in evaluation and prediction."
            )
            if any(leaf.ndim == first[k].ndim and leaf.shape[1:] != first[k].shape[1:] for k, leaf in changed.items()):
                error.add_note(
                    "Sequences of several lengths: pad them to one length in input_fn. There is one program for one "
                    "shape."
                )
            raise error

    def _check_size(self, rows: int, leaf: str) -> None:
        if self.batch_size is None:
            self.batch_size = rows
        if self.batch_size % self._num_shards:
            raise ValueError(
                f"{self._where()} has {rows} rows, which {self._num_shards} shards do not divide. Yield a multiple of "
                f"{self._num_shards} rows."
            )
        if rows != self.batch_size and not self._request.ragged:
            is_one_shards = self._num_shards > 1 and rows * self._num_shards == self.batch_size
            raise ValueError(
                f"{self._where()} has {rows} rows, expected {self.batch_size} (leaf {leaf}). In "
                "training every batch must have params['batch_size'] rows: leave out a short last batch "
                "(drop_remainder), as numpy_input_fn does."
                + f" These are the rows of one of the {self._num_shards} shards: "
                f"yield the rows of all of them in one batch." * is_one_shards
            )
        if rows > self.batch_size and self._num_shards > 1:
            raise ValueError(
                f"{self._where()} has {rows} rows. The real batch size should not be greater than batch_size, "
                f"{self.batch_size}: yield at most params['batch_size'] rows."
            )

    def _convert(self, path: tuple[object, ...], leaf: object) -> np.ndarray:
        name = path_name(path)
        array = to_numpy(leaf, name, self._where())
        out = narrowed(array, name, self._where())
        if out is not array and type(leaf) is not list:  # the numbers of a list have no dtype that could be lost
            self._narrowed.add(name)
        return out
