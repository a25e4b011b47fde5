"""Calls of several threads that run as one batch, for servers of an export."""

import collections
import concurrent.futures
import dataclasses
import threading
from collections.abc import Sequence

import jax
import numpy as np

from jaxspec._src.base.types import Array
from jaxspec._src.base.validate import check_number
from jaxspec._src.export.loaded import LoadedSignature
from jaxspec._src.export.signature_file import BATCH


@dataclasses.dataclass(frozen=True)
class _Call:
    arrays: dict[str, Array]
    answer: concurrent.futures.Future[dict[str, np.ndarray]] = dataclasses.field(
        default_factory=concurrent.futures.Future
    )

    @property
    def rows(self) -> int:
        return len(next(iter(self.arrays.values())))

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of one row, in the order of the signature."""
        return [array.shape[1:] for array in self.arrays.values()]


class Batcher:
    """A signature of an export that joins calls: those that come while the devices are busy run as one batch.

    It is called as the signature is, from any number of threads. Each call returns what the signature computes for its
    rows, as NumPy arrays. A batch is filled up with copies of its rows to a power of two of them, or to one of the
    `batch_sizes` of the signature, so that few programs are compiled. Calls whose rows have different shapes run one
    after the other, as do all calls of a signature that is not `rowwise`: these are not filled up, either.

    Args:
      signature: of a `LoadedExport`.
      max_rows: how many rows a batch has at most. A call with more runs alone.

    Attributes:
      signature: the argument.
      max_rows: the argument; no more than the largest of the `batch_sizes`.
    """

    def __init__(self, signature: LoadedSignature, max_rows: int = 1024) -> None:
        check_number(
            "max_rows", max_rows, whole=True, above=0, required=True, instead="Write Batcher(signature, max_rows=1024)."
        )
        self.signature = signature
        self.max_rows = min(max_rows, max(signature.batch_sizes or [max_rows]))
        self._waiting: collections.deque[_Call] = collections.deque()
        self._busy = threading.Lock()

    def __call__(self, /, **arrays: object) -> dict[str, np.ndarray]:
        """Waits for the outputs of these rows; arguments and errors are those of `LoadedSignature`."""
        call = _Call(self.signature.check(**arrays))
        self._waiting.append(call)
        with self._busy:
            # Whoever comes first runs the calls of all who wait. So most threads find theirs answered.
            while not call.answer.done():
                self._answer(self._next_batch())
        return call.answer.result()

    def _next_batch(self) -> list[_Call]:
        batch = [self._waiting.popleft()]
        rows = batch[0].rows
        while self.signature.rowwise and self._waiting:
            call = self._waiting[0]
            rows += call.rows
            if rows > self.max_rows or call.shapes != batch[0].shapes:
                break
            batch.append(self._waiting.popleft())
        return batch

    def _answer(self, batch: Sequence[_Call]) -> None:
        try:
            ends = np.cumsum([call.rows for call in batch]).tolist()
            joined = {name: np.concatenate([call.arrays[name] for call in batch]) for name in batch[0].arrays}
            size = self._filled(ends[-1])
            filled = {name: np.resize(array, (size, *array.shape[1:])) for name, array in joined.items()}
            outputs = jax.device_get(self.signature(**filled))
        except BaseException as error:  # of the thread that runs the batch: the others may not wait for ever
            for call in batch:
                call.answer.set_exception(error)
            return
        of_rows = {name for name, form in self.signature.outputs.items() if form["shape"][:1] == [BATCH]}
        for call, end in zip(batch, ends, strict=True):
            part = slice(end - call.rows, end)
            call.answer.set_result({name: x[part] if name in of_rows else x for name, x in outputs.items()})

    def _filled(self, rows: int) -> int:
        """How many rows a batch is filled up to."""
        if not self.signature.rowwise:
            return rows
        sizes = self.signature.batch_sizes or [1 << (rows - 1).bit_length()]
        return next((size for size in sizes if size >= rows), rows)
