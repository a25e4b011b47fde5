"""The bytes of one tensor in a data file, as an array."""

import math

import numpy as np

from jaxspec._src.base.masked_crc import masked_crc
from jaxspec._src.checkpoint.tensorflow.damage import DamageError
from jaxspec._src.checkpoint.tensorflow.dtypes import STRING, numpy_dtype
from jaxspec._src.checkpoint.tensorflow.entries import Entry
from jaxspec._src.checkpoint.tensorflow.wire import read_varint

_WRONG_CHECKSUM = "its bytes are not those that were written (the checksum differs)"


def check_size(entry: Entry) -> None:
    """Raises DamageError unless the tensor has as many bytes as its shape and dtype need."""
    elements = math.prod(entry.shape)
    if entry.dtype == STRING:
        right = elements + 4 <= entry.size  # the length of each string takes a byte or more
    else:
        right = elements * numpy_dtype(entry.dtype).itemsize == entry.size
    if not right:
        raise DamageError(f"its shape {list(entry.shape)} does not fit its {entry.size} bytes")


def decode(data: bytearray, entry: Entry) -> np.ndarray:
    """The array of a tensor, from all of its bytes. DamageError if the checksum is wrong."""
    if entry.dtype == STRING:
        array = np.empty(math.prod(entry.shape), np.object_)
        array[:] = _strings(data, len(array), entry.crc)
    else:
        if masked_crc(data) != entry.crc:
            raise DamageError(_WRONG_CHECKSUM)
        array = np.frombuffer(data, numpy_dtype(entry.dtype))
    return array.reshape(entry.shape)


def _strings(data: bytearray, count: int, crc: int) -> list[bytes]:
    """The strings of a tensor: their lengths come first, then a checksum of these, then the strings."""
    lengths, at = [], 0
    for _ in range(count):
        length, at = read_varint(data, at)
        lengths.append(length)
    if at + 4 + sum(lengths) != len(data):
        raise DamageError("its strings do not fill its bytes")
    # The lengths are checksummed as numbers of 32 bits, where that is enough.
    numbers = b"".join(length.to_bytes(4 if length < 1 << 32 else 8, "little") for length in lengths)
    stored = data[at : at + 4]
    if int.from_bytes(stored, "little") != masked_crc(numbers) or masked_crc(numbers + data[at:]) != crc:
        raise DamageError(_WRONG_CHECKSUM)
    at += 4
    strings = []
    for length in lengths:
        strings.append(bytes(data[at : at + length]))
        at += length
    return strings
