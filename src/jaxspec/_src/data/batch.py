"""One element of the input as one checked batch of NumPy arrays. Pure but for its log lines: no thread, no queue."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import jax
import numpy as np

from jaxspec._src.base.arrays import describe_array, describe_leaves, named_leaves, path_name
from jaxspec._src.base.types import Array, PyTree
from jaxspec._src.data.elements import are_jax_arrays, is_plain_list, narrowed, split_element, to_numpy
from jaxspec._src.data.input_request import InputRequest
from jaxspec._src.spec.mode import ModeKeys

_logger = logging.getLogger("jaxspec")


@dataclasses.dataclass(frozen=True)
class InputBatch:
    """One checked batch of this process."""

    data: tuple[PyTree, PyTree]
    """(features, labels), NumPy leaves `[rows, ...]`, or JAX arrays if `on_devices`. The input may write to its NumPy
    arrays later."""
    rows: int
    position: str | None = None
    """The position of the input after this batch, as text; None if the input reports none."""
    on_devices: bool = False
    """Whether all leaves are JAX arrays."""
    signature: int = 0
    """The same for batches of the same shapes but for their rows. Numbered in the order in which they come."""

    left: ClassVar[int] = 1
    """How many batches have not been taken. (Of a `Stack` there may be several.)"""

    def rest(self) -> "list[InputBatch]":
        """The batches that have not been taken: this one."""
        return [self]


class _FullBatch(NamedTuple):
    """What a full batch looks like that has been checked."""

    structure: jax.tree_util.PyTreeDef
    kinds: list[tuple[np.dtype, tuple[int, ...]]]
    """dtype and shape of each leaf, as the input gives it."""
    narrowed: list[int]
    """The leaves that become arrays of 32 bits."""
    signature: int

    def has_kinds_of(self, leaves: Sequence[Array], on_devices: bool) -> bool:
        """Whether these are such arrays: all of NumPy, or all of JAX."""
        return all(
            (on_devices or type(x) is np.ndarray) and x.shape == shape and x.dtype == dtype
            for x, (dtype, shape) in zip(leaves, self.kinds, strict=True)
        )


def _full_batch(
    leaves: Sequence[Array], structure: jax.tree_util.PyTreeDef, converted: Sequence[Array], signature: int
) -> _FullBatch:
    changed = [i for i, (x, y) in enumerate(zip(leaves, converted, strict=True)) if x.dtype != y.dtype]
    return _FullBatch(structure, [(x.dtype, x.shape) for x in leaves], changed, signature)


class BatchChecker:
    """Turns the elements of one input into batches, and compares each with the first.

    Args:
      request: its `mode`, `num_shards`, `batch_size`, `ragged` and `max_programs` decide what fits.
      warned_of: the leaves of 64 bits that a warning has named already; others are added to it.
    """

    def __init__(self, request: InputRequest, warned_of: set[str] | None = None) -> None:
        self.batch_size = request.batch_size
        """The rows of a full batch. None until the first batch decides it."""
        self.number = 0
        """The number of the next batch, counted from 0."""
        self._request, self._num_shards = request, request.num_shards
        self._narrowed: set[str] = set()
        self._warned_of = set() if warned_of is None else warned_of
        self._reference: dict[str, np.ndarray] | None = None
        self._structure: jax.tree_util.PyTreeDef | None = None
        self._signatures: list[tuple[tuple[int, ...], ...]] = []
        """The shapes of one row of each leaf, of each kind of batch that has come."""
        self._known: list[_FullBatch] = []

    def leaves(self) -> dict[str, str]:
        """dtype and shape of one row of each leaf, by its path; "?" for a size that differs. There must have been a
        batch."""
        assert self._reference is not None
        sizes = [
            [next(iter(found)) if len(found := set(of_axis)) == 1 else "?" for of_axis in zip(*shapes, strict=True)]
            for shapes in zip(*self._signatures, strict=True)
        ]
        shown = (", ".join(map(str, axes)) for axes in sizes)
        return {
            name: f"{leaf.dtype}[{axes}]" for (name, leaf), axes in zip(self._reference.items(), shown, strict=True)
        }

    def check(self, element: PyTree) -> InputBatch:
        """The batch of an element of the input. In prediction its labels are dropped.

        Raises:
          ValueError, TypeError, OverflowError: for an element that is no batch, or differs from the first; names the
            leaf.
        """
        features, labels = split_element(element)
        if self._request.mode == ModeKeys.PREDICT:
            labels = None
        flat, flat_structure = jax.tree.flatten((features, labels))
        on_devices = are_jax_arrays(flat)
        for known in self._known:
            if known.structure == flat_structure and known.has_kinds_of(flat, on_devices):
                batch = self._as_before(known, (features, labels), flat, on_devices)
                self.number += 1
                return batch
        data = {"features": features, "labels": labels}
        if not on_devices:
            data = jax.tree_util.tree_map_with_path(self._convert, data, is_leaf=is_plain_list)
        if self.number == 0 and (unnamed := sorted(self._narrowed - self._warned_of)):
            self._warned_of.update(unnamed)
            _logger.warning(
                "input_fn yields 64-bit arrays, which become 32-bit: %s. Enable jax_enable_x64 to keep them.",
                ", ".join(unnamed),
            )
        leaves = named_leaves(data)
        if not leaves:
            raise ValueError(f"{self._where()}: no array in it; yield features, or (features, labels).")
        rows, *others = {leaf.shape[0] for leaf in leaves.values()}
        if others:
            raise ValueError(
                f"{self._where()}: leaves disagree in their leading size, the batch: {describe_leaves(leaves)}."
            )
        batch = InputBatch((data["features"], data["labels"]), rows, on_devices=on_devices)
        if rows or not self._request.ragged:
            structure = jax.tree.structure(data)
            if self._reference is None:
                self._reference, self._structure = leaves, structure
            self._compare(self._reference, leaves, structure)
            self._check_size(rows, next(iter(leaves)))
            batch = dataclasses.replace(batch, signature=self._signature_of(leaves))
            if rows == self.batch_size and (on_devices or all(type(x) is np.ndarray for x in flat)):
                self._known.append(_full_batch(flat, flat_structure, list(leaves.values()), batch.signature))
        self.number += 1
        return batch

    @property
    def num_signatures(self) -> int:
        """How many different shapes batches have had, besides the number of their rows."""
        return len(self._signatures)

    def passed(self, count: int) -> None:
        """`count` batches were read that need no check; below 0: they will be read again."""
        self.number += count

    def _as_before(self, known: "_FullBatch", data: PyTree, leaves: list[Array], on_devices: bool) -> InputBatch:
        """A batch with the dtypes and shapes of one that was checked. Most batches cost no more than this."""
        if known.narrowed:
            names = list(self._reference or ())
            for i in known.narrowed:
                leaves[i] = narrowed(np.asarray(leaves[i]), names[i], self._where())
            data = jax.tree.unflatten(known.structure, leaves)
        return InputBatch(data, leaves[0].shape[0], on_devices=on_devices, signature=known.signature)

    def _signature_of(self, leaves: dict[str, np.ndarray]) -> int:
        """The number of the batch's signature. ValueError if there are too many."""
        shapes = tuple(leaf.shape[1:] for leaf in leaves.values())
        if shapes not in self._signatures:
            self._signatures.append(shapes)
            number, most = len(self._signatures), self._request.max_programs
            changed = [
                f"{name}: {describe_array(leaf)}"
                for (name, leaf), first in zip(leaves.items(), self._signatures[0], strict=True)
                if leaf.shape[1:] != first
            ]
            if number > most:
                raise ValueError(
                    f"{self._where()} has new shapes ({'; '.join(changed)}), and each of the {most} before needs a "
                    "program of its own. Pad the batches to fewer lengths in input_fn, or raise "
                    "RunConfig(max_programs=...)."
                )
            if number > 1:
                _logger.info(
                    "%s has new shapes (%s): they need program %d of %d at most (RunConfig.max_programs).",
                    *(self._where(), "; ".join(changed), number, most),
                )
        return self._signatures.index(shapes)

    def _where(self) -> str:
        return f"batch {self.number} of input_fn (counted from 0)"

    def _compare(
        self, first: dict[str, np.ndarray], leaves: dict[str, np.ndarray], structure: jax.tree_util.PyTreeDef
    ) -> None:
        problems = [
            f"{name}: {describe_array(leaf)}, was {describe_array(first[name])}"
            for name, leaf in leaves.items()
            if name in first and (leaf.dtype, leaf.ndim) != (first[name].dtype, first[name].ndim)
        ]
        problems += [f"{name}: not in the first batch" for name in leaves if name not in first]
        problems += [f"{name}: missing" for name in first if name not in leaves]
        if not problems and structure != self._structure:
            problems = [f"structure {structure}, was {self._structure}"]
        if problems:
            raise ValueError(
                f"{self._where()} differs from the first batch: {'; '.join(problems)}. All batches must have the same "
                "leaves and dtypes, and the same number of dimensions."
            )

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
