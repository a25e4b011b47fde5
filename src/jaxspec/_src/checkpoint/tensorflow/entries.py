"""The messages of an index: what it says of the whole checkpoint, and of each tensor."""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from jaxspec._src.checkpoint.tensorflow.damage import DamageError
from jaxspec._src.checkpoint.tensorflow.wire import read_message, read_varint

Extent = tuple[int, int | None]
"""(start, length) of a slice along one axis; a length of None means the whole axis."""
_VERSION = 1
"""The version of the format that this reader knows. There is no other yet."""


class Entry(NamedTuple):
    """What an index says of a tensor."""

    dtype: int
    """The number of a DataType of TensorFlow."""
    shape: tuple[int, ...]
    shard: int
    """The number of the data file."""
    offset: int
    """Where in the data file the tensor begins, in bytes."""
    size: int
    """In bytes."""
    crc: int
    slices: tuple[tuple[Extent, ...], ...]
    """Those of a partitioned variable. They have entries of their own, and this one has no bytes."""


def read_header(data: bytes, file: str) -> int:
    """The number of data files, from the header of an index. `file` is what errors call it.

    Raises:
      DamageError: if it is no header.
      ValueError: if this reader cannot read such a checkpoint.
    """
    fields = dict(read_message(data))
    shards = _number(fields.get(1, 0))
    if not 0 < shards < 1 << 31:
        raise DamageError(f"its header speaks of {shards} data files")
    version = list(read_message(_message(fields.get(3, b""))))
    oldest_reader = _number(dict(version).get(2, 0))
    refused = [reader for number, value in version if number == 3 for reader in _numbers(value)]
    if oldest_reader > _VERSION or _VERSION in refused:
        raise ValueError(
            f"{file} is of a newer version of TensorFlow's format (its readers need version {max(oldest_reader, 2)}), "
            f"and this reader knows version {_VERSION}. Save it with an older TensorFlow."
        )
    if _number(fields.get(2, 0)) != 0:
        raise ValueError(
            f"{file} says that the numbers are big-endian, which this reader does not know. Restore it with "
            "TensorFlow on an ordinary machine, and save it there."
        )
    return shards


def read_entry(data: bytes) -> Entry:
    """The entry of one tensor. DamageError if it is not one."""
    fields = list(read_message(data))
    last = dict(fields)
    shape = tuple(_shape(_message(last.get(2, b""))))
    if len(shape) > 64 or math.prod(max(size, 1) for size in shape) >= 1 << 58:  # more than NumPy has
        raise DamageError(f"a tensor has the shape {list(shape)}")
    return Entry(
        dtype=_number(last.get(1, 0)),
        shape=shape,
        shard=_number(last.get(3, 0)),
        offset=_number(last.get(4, 0)),
        size=_number(last.get(5, 0)),
        crc=_number(last.get(6, 0)),
        slices=tuple(_slice(_message(value)) for number, value in fields if number == 7),
    )


def _shape(data: bytes) -> Iterator[int]:
    for number, value in read_message(data):
        if number == 3 and value:
            raise DamageError("a tensor has no known rank")
        if number == 2:
            yield _number(_fields(value).get(1, 0))


def _slice(data: bytes) -> tuple[Extent, ...]:
    extents = [_fields(value) for number, value in read_message(data) if number == 1]
    return tuple((_number(e.get(1, 0)), _number(e[2]) if 2 in e else None) for e in extents)


def _fields(value: int | bytes) -> Mapping[int, int | bytes]:
    return dict(read_message(_message(value)))


def _message(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise DamageError("a message in it has a field of another kind than expected")
    return value


def _numbers(value: int | bytes) -> Iterator[int]:
    """Those of a repeated field, which are written side by side, or each as a field."""
    at = 0
    while isinstance(value, bytes) and at < len(value):
        number, at = read_varint(value, at)
        yield number
    if isinstance(value, int):
        yield value


def _number(value: int | bytes) -> int:
    """A number that is never negative in a checkpoint. A negative one is written as one of 64 bits."""
    if not isinstance(value, int) or value >= 1 << 63:
        raise DamageError("a number in it is negative, or is no number")
    return value
