"""Resumes an input: checks that the saved position came from it, then sets it."""

import functools
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import crc32c
import numpy as np

from jaxspec._src.base.arrays import named_leaves
from jaxspec._src.base.types import InputFn, PyTree
from jaxspec._src.data.batch import BatchChecker
from jaxspec._src.data.input_request import InputRequest, warn_of_other_input
from jaxspec._src.data.position import (
    PositionState,
    decode_position,
    encode_position,
    position_identity,
)
from jaxspec._src.data.position_methods import LoaderBatches, PositionMethods

Identity: TypeAlias = dict[str, object]
"""What an input is recognised by, as `input_identity` makes it. JSON values."""
_WHOLE_BYTES = 2**20
"""An array of so many bytes or fewer is read whole for its fingerprint."""
_SAMPLED_ROWS = 1024
_ITEMS = 100
"""So many items of a container are looked at: it may be a vocabulary."""


def input_identity(iterator: Iterator[PyTree], input_fn: InputFn) -> Identity:
    """The identity of an input: what it is recognised by when it is made again.

    It holds the type of the iterator or loader, and what its method `fingerprint` returns; if it has none, the name of
    input_fn and a checksum of the arrays that are its attributes.
    """
    source = iterator.loader if isinstance(iterator, LoaderBatches) else iterator
    kind = f"{type(source).__module__}.{type(source).__qualname__}"
    fingerprint = getattr(source, "fingerprint", None)
    if callable(fingerprint):
        # Through JSON, as it will be compared with what comes out of a checkpoint.
        return {"iterator": kind, "fingerprint": json.loads(encode_position(fingerprint()))}
    while isinstance(input_fn, functools.partial):
        input_fn = input_fn.func
    name = getattr(input_fn, "__qualname__", None) or type(input_fn).__qualname__
    return {"iterator": kind, "input_fn": name, "arrays": arrays_fingerprint(_held_arrays(source))}


def _held_arrays(source: object) -> dict[str, np.ndarray]:
    """The arrays that are attributes of an object, or items of a dict, list or tuple that is one."""
    held = {}
    for name, value in getattr(source, "__dict__", {}).items():
        items = value.items() if type(value) is dict else enumerate(value) if type(value) in (list, tuple) else ()
        for key, item in (("", value), *itertools.islice(items, _ITEMS)):
            if type(item) is np.ndarray:
                held[f"{name}[{key!r}]" if key != "" else name] = item
    return held


def arrays_fingerprint(tree: PyTree) -> dict[str, str]:
    """A checksum (CRC-32C), dtype and shape of each NumPy array in `tree`, by its path.

    An array of more than 1 MiB is sampled: 1,024 rows spread evenly over the whole, the first and the last among them.
    So the time does not grow with the data; two large arrays that differ in other rows only have the same fingerprint.
    """
    out = {}
    for name, leaf in named_leaves(tree).items():
        rows = leaf
        if leaf.nbytes > _WHOLE_BYTES:
            rows = leaf[np.linspace(0, leaf.shape[0] - 1, min(_SAMPLED_ROWS, leaf.shape[0])).astype(np.int64)]
        checksum = 0 if leaf.dtype.hasobject else crc32c.crc32c(rows.tobytes())
        out[name] = f"{leaf.dtype}{list(leaf.shape)} {checksum:08x}"
    return out


def difference(saved: Mapping[str, object] | None, here: Mapping[str, object]) -> str | None:
    """In words, how the input here differs from the saved identity; None if it does not, or if none was saved."""
    if saved is None:
        return None
    was_leaves, leaves = saved.get("leaves"), here.get("leaves")
    if isinstance(was_leaves, dict) and isinstance(leaves, dict):
        same = {key: was for key, was in was_leaves.items() if key in leaves and _may_be_same_leaf(was, leaves[key])}
        here = {**here, "leaves": {**leaves, **same}}
    texts = ((key, _difference(saved.get(key), value)) for key, value in here.items())
    return next((f"{key}{text}" for key, text in texts if text is not None), None)


def _difference(was: object, value: object) -> str | None:
    if was == value:
        return None
    if isinstance(value, dict) and isinstance(was, dict):
        inner = {key: _difference(was.get(key), value.get(key)) for key in (*value, *was)}
        return next(f"/{key}{text}" for key, text in inner.items() if text is not None)
    return f": {value}, was {was}"


def _may_be_same_leaf(was: str, here: str) -> bool:
    """Whether two leaves of `BatchChecker.leaves` agree but for sizes that are known to differ from batch to batch."""
    sizes, others = (re.split(r"[\[\], ]+", text) for text in (was, here))
    return len(sizes) == len(others) and all(x == y or "?" in (x, y) for x, y in zip(sizes, others, strict=True))


class Positions:
    """Reads and sets the position of one input, with the errors and warnings that belong to it.

    Args:
      methods: of the training input.
      identity: what it is recognised by.
      request: what was asked for; its `resume` decides whether identities are compared.
    """

    def __init__(self, methods: PositionMethods, identity: Identity, request: InputRequest) -> None:
        self._methods, self.identity, self._request = methods, identity, request
        self._before: PositionState = None
        self._leaves = 0
        """How many kinds of batches the identity speaks of."""

    def after(self, checker: BatchChecker, *, has_rows: bool) -> str:
        """The position after the batch that `checker` has just checked, as text. The next batch will change it."""
        try:
            state = self._methods.get()
        except BaseException as error:
            error.add_note(
                f"raised by {self._methods.get_name} of the input, after batch {checker.number - 1} (counted from 0)"
            )
            raise
        if has_rows and self._leaves != (number := checker.num_signatures):
            self._leaves, self.identity["leaves"] = number, checker.leaves()
        return self.encode(state)

    @property
    def encode(self) -> Callable[[PositionState], str]:
        """Makes text of a position of the input. It may be kept for longer than the input."""
        return functools.partial(encode_position, identity=self.identity, returned_by=self._methods.get_name)

    def go_to(self, position: str, *, reversible: bool) -> bool:
        """Sets the position. False, with a warning, if it came from another input or the iterator refuses it.

        Args:
          reversible: whether `undo` may be called afterwards.
        """
        if self._request.resume is False:
            return False
        if self._request.resume is None:
            known = {key: value for key, value in self.identity.items() if key != "leaves"}
            if self.refused(position, known):
                return False
        self._before = self._methods.get() if reversible else None
        try:
            self._methods.set(decode_position(position))
        except BaseException as error:
            if isinstance(error, ValueError) and self._request.resume is None:
                warn_of_other_input(self._request, f"{error}")
                return False
            error.add_note(
                f"raised by {self._methods.set_name} of the input that input_fn ({self._request.name}) returned"
            )
            raise
        return True

    def undo(self) -> None:
        """Sets the position that the iterator had before `go_to`."""
        self._methods.set(self._before)

    def refused(self, position: str, known: Mapping[str, object]) -> bool:
        """Whether the position came from an input that differs in what is `known` of this one; warns then."""
        reason = difference(position_identity(position), known)
        if reason is not None:
            warn_of_other_input(self._request, reason)
        return reason is not None
