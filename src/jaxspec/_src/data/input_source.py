"""One call of input_fn: the iterator that it returns is opened, read and closed here.

The input's thread runs everything but the constructor. An iterator that the caller holds, too, is not closed.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator

import jax
import numpy as np

from jaxspec._src.base.types import PositionAt, PyTree
from jaxspec._src.data.batch import BatchChecker, InputBatch
from jaxspec._src.data.elements import call_input_fn, elements, narrowed, split_element
from jaxspec._src.data.input_request import InputRequest, warn_of_repeated_input, warn_of_used_up_input
from jaxspec._src.data.lent_iterators import Holder, InputMemory
from jaxspec._src.data.numpy_input import NumpyBatches
from jaxspec._src.data.position import PositionState
from jaxspec._src.data.position_methods import position_methods
from jaxspec._src.data.resume import Positions, input_identity
from jaxspec._src.data.stacks import no_position
from jaxspec._src.device.stack_placement import fits_on_devices
from jaxspec._src.spec.mode import ModeKeys

_NARROWED_BYTES = 64 << 20
"""Arrays of a whole data set are copied for the sake of a dtype only if they are smaller together."""


def _position(encode: Callable[[PositionState], str], state: dict[str, int | None], rows: int) -> str:
    """The position of `numpy_input_fn` after so many rows. Made when it is needed: there is one for each batch."""
    return encode({**state, "rows": rows})


def _is_narrow(array: np.ndarray) -> bool:
    return bool(jax.dtypes.canonicalize_dtype(array.dtype) == array.dtype)


class InputSource:
    """Opens, reads and closes the input of one call.

    Args:
      request: what is asked for.
      memory: what the estimator keeps of its input between calls.
    """

    def __init__(self, request: InputRequest, memory: InputMemory) -> None:
        self._request, self._memory = request, memory
        self.position: str | None = request.position
        """Where the input goes on; None: at its beginning, or where it stands. Final after `open`."""
        self.lent = False
        """Whether the caller holds the iterator, too. It is not closed then, and goes on where it stands."""
        self._held: Holder[Iterator[PyTree]] = Holder(iter(()))
        self._positions: Positions | None = None
        """None: the input reports no position, or nobody trains on it."""
        self._unused: list[InputBatch] = []
        self._start_over()

    def _start_over(self) -> None:
        self.checker = BatchChecker(self._request, self._memory.narrowed)
        self._fetched = 0

    def open(self) -> InputBatch | None:
        """Calls input_fn, goes to the position, and fetches the first batch: None if there is none."""
        saved, self.position = self.position, None
        recalled = self._make()
        if self._positions is None or saved is None:
            self._warn_if_repeated(recalled)
        elif self._positions.go_to(saved, reversible=self.lent):
            self.position, self._unused = saved, []
        first = self.fetch()
        if self._positions is None or self.position is None:
            return first
        if first is None:
            warn_of_used_up_input(self._request)
        elif self._request.resume or not self._positions.refused(self.position, {"leaves": self.checker.leaves()}):
            return first
        # The input begins again, in this thread.
        self.position = None
        if self.lent:
            if first is None:
                return None
            self._positions.undo()
        else:
            if (error := self.close()) is not None:
                raise error
            self._make()
        self._start_over()
        return self.fetch()

    def fetch(self) -> InputBatch | None:
        """The next batch; None at the end of the input and at the limit."""
        if self._fetched == self._request.limit:
            return None
        while True:
            try:
                if self._unused:
                    left = self._unused.pop(0)
                    element, position = left.data, left.position
                else:
                    element, position = next(self._held.value), None
            except StopIteration:
                return None
            except BaseException as error:
                error.add_note(f"raised by input_fn at batch {self.checker.number} (counted from 0)")
                raise
            batch = self.checker.check(element)
            counts = batch.rows > 0 or not self._request.ragged  # a filter may leave nothing of a batch
            if self._positions is not None and position is None:
                position = self._positions.after(self.checker, has_rows=counts)
            if counts:
                self._fetched += 1
                return batch if position is None else dataclasses.replace(batch, position=position)

    def block_arrays(self) -> PyTree | None:
        """The arrays that `next_rows` says the rows of, as (features, labels) with leaves as in a batch.

        None: the input is not one of `numpy_input_fn`, the caller holds its iterator, or the arrays would have to be
        copied, because the devices take other dtypes, and are large or not all used. For after `open`.
        """
        batches = self._held.value
        if not isinstance(batches, NumpyBatches) or self.lent:
            return None
        features, labels = split_element(batches.arrays)
        arrays = features, None if self._request.mode == ModeKeys.PREDICT else labels
        size = sum(x.nbytes for x in jax.tree.leaves(arrays) if not _is_narrow(x))
        if size > _NARROWED_BYTES or (size and not self._reads_all()):
            return None
        try:
            return jax.tree.map(lambda x: narrowed(x, "", ""), arrays)
        except OverflowError:
            return None  # the batch that holds the number says so

    def wants_resident(self, size: int) -> bool:
        """Whether the input's arrays, of `size` bytes together, are to be kept on the devices."""
        batches = self._held.value
        assert isinstance(batches, NumpyBatches)
        if batches.resident != "auto":
            return batches.resident and self._request.training
        return self._request.training and self._reads_all() and self._fits_on_devices(size)

    def _reads_all(self) -> bool:
        """Whether the call reads all examples at least once. For `numpy_input_fn`."""
        batches, limit = self._held.value, self._request.limit
        assert isinstance(batches, NumpyBatches)
        return limit is None or limit * (self.checker.batch_size or 1) >= batches.num_examples

    def _fits_on_devices(self, size: int) -> bool:
        # Memory that is kept for these arrays counts as used, and was found to be free before.
        kept = sum(x.nbytes for x in self._memory.resident)
        return kept == size or fits_on_devices(size, self._request.devices)

    def put_back(self) -> None:
        """Goes back to before the first batch of an input that has `block_arrays`."""
        batches = self._held.value
        assert isinstance(batches, NumpyBatches)
        batches.put_back()
        self._fetched -= 1
        self.checker.passed(-1)

    def next_rows(self, most: int) -> tuple[np.ndarray, list[PositionAt]]:
        """Takes up to `most` full batches of an input that has `block_arrays`: none before a short one and at the end.

        Returns:
          (which examples, int `[batches, rows]`; the position after each batch).
        """
        batches = self._held.value
        assert isinstance(batches, NumpyBatches)
        if self._request.limit is not None:
            most = min(most, self._request.limit - self._fetched)
        rows = batches.next_rows(most)
        count = len(rows)
        self._fetched += count
        self.checker.passed(count)
        positions: list[PositionAt] = [no_position] * count
        if self._positions is not None:
            encode, state = self._positions.encode, batches.get_state()
            positions = [functools.partial(_position, encode, state, given) for given in batches.rows_given(count)]
        return rows, positions

    def close(self) -> BaseException | None:
        """Closes the iterator, unless it is lent; returns the error that this raised, or None."""
        if self.lent:
            return None
        iterator, self._held, self._positions = self._held.value, Holder(iter(())), None
        close = getattr(iterator, "close", None)
        try:
            if callable(close):
                close()
        except BaseException as error:
            return error
        return None

    def remember(self, unused: list[InputBatch]) -> None:
        """Keeps the batches that were fetched from a lent iterator and not used, for the next call."""
        identity = None if self._positions is None else self._positions.identity
        self._memory.remember(self._held.value, identity, [*unused, *self._unused])

    def _make(self) -> bool:
        """Makes the iterator; returns whether it is the one of the last call."""
        # One expression: a variable here would count as another holder of the iterator.
        self._held = Holder(elements(call_input_fn(self._request.input_fn, self._request.arguments)))
        self.lent = not self._held.is_alone()
        iterator = self._held.value
        endless = isinstance(iterator, itertools.cycle) or getattr(iterator, "endless", False) is True
        if endless and self._request.mode == ModeKeys.EVAL and self._request.limit is None:
            raise ValueError(
                f"evaluate would never end: the input of input_fn ({self._request.name}) repeats for ever, and "
                "steps=None takes all of it. Pass steps=..., or an input of one epoch, as numpy_input_fn(x, y, "
                "num_epochs=1)."
            )
        recalled = self._memory.recall(iterator)
        identity, self._unused = recalled or (None, [])
        self._positions = None
        methods = position_methods(iterator) if self._request.training else None
        if methods is not None:
            identity = identity or input_identity(iterator, self._request.input_fn)
            self._positions = Positions(methods, identity, self._request)
        return recalled is not None

    def _warn_if_repeated(self, recalled: bool) -> None:
        """Warns once that training goes on, but its input begins again."""
        request, memory = self._request, self._memory
        expected = recalled or self.lent or request.resume is False or (memory.used_up and not request.restarted)
        if not request.training or not request.step or expected or memory.warned:
            return
        memory.warned = True
        warn_of_repeated_input(request, type(self._held.value).__name__, reports_position=self._positions is not None)
