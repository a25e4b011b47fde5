"""The wire format of protocol buffers: numbers of variable length, and messages as (number of the field, value)."""

from collections.abc import Iterator

from jaxspec._src.checkpoint.tensorflow.damage import DamageError


def read_varint(data: bytes | bytearray, at: int) -> tuple[int, int]:
    """(an unsigned number of 64 bits that begins at `at`, where it ends)."""
    if at < len(data) and data[at] < 0x80:  # most numbers are a byte long
        return data[at], at + 1
    value = 0
    for number, byte in enumerate(data[at : at + 10]):  # 64 bits need no more bytes
        value |= (byte & 0x7F) << (7 * number)
        if byte < 0x80:
            if value >= 1 << 64:
                break
            return value, at + number + 1
    raise DamageError("a number in it breaks off, or is too large")


def read_message(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message in their order: numbers as unsigned ones, all others as bytes."""
    at = 0
    while at < len(data):
        tag, at = read_varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = read_varint(data, at)
            yield number, value
            continue
        if kind == 2:
            size, at = read_varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise DamageError("a message in it has a field of an unknown kind")
        if size > len(data) - at:
            raise DamageError("a message in it breaks off")
        piece = data[at : at + size]
        at += size
        yield number, piece if kind == 2 else int.from_bytes(piece, "little")
