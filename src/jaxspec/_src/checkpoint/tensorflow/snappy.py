"""Snappy's format, decompressed: for the blocks of an index, which are small."""

from jaxspec._src.checkpoint.tensorflow.damage import DamageError
from jaxspec._src.checkpoint.tensorflow.wire import read_varint


def decompress(data: bytes) -> bytes:
    """The bytes that were compressed.

    Raises:
      DamageError: if `data` is not what the compression of any bytes gives.
    """
    size, at = read_varint(data, 0)
    out = bytearray()

    def number(length: int) -> int:
        nonlocal at
        at += length
        return int.from_bytes(data[at - length : at], "little")

    while at < len(data) and len(out) <= size:
        tag = number(1)
        kind, upper = tag & 3, tag >> 2
        if kind == 0:  # bytes as they are
            length = 1 + (upper if upper < 60 else number(upper - 59))
            out += data[at : at + length]
            at += length
            continue
        if kind == 1:  # a copy of what was before; the three kinds differ in how the distance is written
            length, distance = 4 + (upper & 7), (upper >> 3) << 8 | number(1)
        else:
            length, distance = 1 + upper, number(2 if kind == 2 else 4)
        if not 0 < distance <= len(out):
            raise DamageError("a compressed block of it refers to bytes that are not there")
        start = len(out) - distance
        piece = out[start : start + length]
        out += (piece * -(-length // len(piece)))[:length]  # a copy may overlap what it makes
    if at != len(data) or len(out) != size:
        raise DamageError("a compressed block of it has another size than it says")
    return bytes(out)
