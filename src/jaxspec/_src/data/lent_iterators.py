"""Iterators that the caller still holds. They are never closed; the next call continues after the last batch used.

Such an iterator is *lent* to the library. Batches that were read from it and not used are kept for the next call.
"""

import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np

from jaxspec._src.base.types import PyTree
from jaxspec._src.data.batch import InputBatch
from jaxspec._src.data.resume import Identity
from jaxspec._src.device.stack_buffers import StackBuffers

T = TypeVar("T")


class InputMemory:
    """What an estimator keeps of its input from one call to the next. One call at a time uses it."""

    def __init__(self) -> None:
        self.used_up = False
        """Whether the last training ended because its input did."""
        self.warned = False
        """Whether a warning has said that the input begins again."""
        self.narrowed: set[str] = set()
        """The leaves of 64 bits that a warning has named."""
        self.buffers: Sequence[StackBuffers] = ()
        """Host memory of stacks: new memory costs as much as what is copied to it."""
        self.resident: Sequence[np.ndarray] = ()
        """Host memory that held the arrays of the last training, if they were kept on CPU devices."""
        self._iterator: Callable[[], object] = lambda: None
        self._identity: Identity | None = None
        self._unused: list[InputBatch] = []

    def remember(self, iterator: Iterator[PyTree], identity: Identity | None, unused: list[InputBatch]) -> None:
        """Keeps the batches that were read from a lent iterator and not used. The iterator itself is not kept alive."""
        try:
            self._iterator = weakref.ref(iterator)
        except TypeError:  # some of Python's own iterators allow no weak references
            self._iterator = lambda: iterator
        self._identity, self._unused = identity, unused

    def recall(self, iterator: Iterator[PyTree]) -> tuple[Identity | None, list[InputBatch]] | None:
        """(identity, unused batches) of this iterator; None if it is another one. The batches are given once."""
        if iterator is not self._iterator():
            return None
        known = self._identity, self._unused
        self._unused = []
        return known


class Holder(Generic[T]):
    """Holds a value, and can tell whether somebody else holds it, too."""

    def __init__(self, value: T) -> None:
        self.value = value

    def is_alone(self) -> bool:
        """Whether nothing but this object refers to the value."""
        return self._references() <= _ALONE

    def _references(self) -> int:
        return sys.getrefcount(self.value)


_ALONE = Holder(object())._references()
"""The count for a value that nobody else holds. It differs between versions of Python."""
