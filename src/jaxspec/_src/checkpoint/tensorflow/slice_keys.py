"""The keys of the slices of a partitioned variable in an index: names and numbers, coded so that they sort."""

from collections.abc import Sequence

from jaxspec._src.checkpoint.tensorflow.entries import Extent

SLICE_PREFIX = b"\0"
"""Begins the key of each slice, and no name of a variable."""


def slice_key(name: bytes, extents: Sequence[Extent]) -> bytes:
    """The key of a slice of the variable `name`, which is in UTF-8."""
    escaped = name.replace(b"\0", b"\0\xff")
    numbers = [number for start, length in extents for number in (start, -1 if length is None else length)]
    return SLICE_PREFIX + escaped + b"\0\1" + _unsigned(len(extents)) + b"".join(map(_signed, numbers))


def _unsigned(value: int) -> bytes:
    size = -(-value.bit_length() // 8)
    return bytes([size]) + value.to_bytes(size, "big")


def _signed(value: int) -> bytes:
    """A number in 7 bits for each byte. As many of the first bits as there are bytes are ones, inverted if it is
    negative."""
    size = (value if value >= 0 else ~value).bit_length() // 7 + 1
    ones = (1 << size) - 1
    # The header is the topmost bits of the bytes; where there are 8 or more it reaches into the second byte.
    header = ones << (8 * size - size)
    return ((value & ((1 << 8 * size) - 1)) ^ header).to_bytes(size, "big")
