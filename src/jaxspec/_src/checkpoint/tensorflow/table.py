"""The table that an index is: sorted keys and values in blocks, as in LevelDB.

A block is followed by its kind of compression and a checksum of both. The last block lists the others, and the footer
says where it is.
"""

import struct
from collections.abc import Iterator

from jaxspec._src.base.masked_crc import masked_crc
from jaxspec._src.checkpoint.tensorflow.damage import DamageError
from jaxspec._src.checkpoint.tensorflow.snappy import decompress
from jaxspec._src.checkpoint.tensorflow.wire import read_varint

MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
"""The last bytes of a table."""
_FOOTER_BYTES = 48
_TRAILER_BYTES = 5
_KEYS_THAT_SHARE = 16
"""TensorFlow writes each 16th key of a block as a whole, so that all of them have at most 16 times its bytes."""


def read_table(data: bytes) -> dict[bytes, bytes]:
    """All entries of a table.

    Raises:
      DamageError: if a checksum is wrong, or if the blocks are not one after the other from the first byte to the last.
    """
    if len(data) < _FOOTER_BYTES or not data.endswith(MAGIC):
        raise DamageError("it does not end as an index does (a part of it is missing)")
    footer = data[-_FOOTER_BYTES : -len(MAGIC)]
    meta, at = _handle(footer, 0)
    index, at = _handle(footer, at)
    if any(footer[at:]):
        raise DamageError("its footer is not what was written")
    listed = [_whole_handle(value) for _, value in _entries(_block(data, index))]
    end = 0
    # A handle that is wrong would otherwise find another block, whose checksum is right.
    for start, size in [*listed, meta, index]:
        if start != end:
            raise DamageError("its blocks do not follow each other")
        end = start + size + _TRAILER_BYTES
    if end != len(data) - _FOOTER_BYTES:
        raise DamageError("its blocks do not fill it")
    _block(data, meta)
    table: dict[bytes, bytes] = {}
    last = None
    for handle in listed:
        for key, value in _entries(_block(data, handle)):
            if last is not None and key <= last:
                raise DamageError("its keys are not sorted")
            table[key] = value
            last = key
    return table


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    """((start, size) of a block, where the handle ends)."""
    start, at = read_varint(data, at)
    size, at = read_varint(data, at)
    return (start, size), at


def _whole_handle(data: bytes) -> tuple[int, int]:
    handle, end = _handle(data, 0)
    if end != len(data):
        raise DamageError("its list of blocks is not what was written")
    return handle


def _block(data: bytes, handle: tuple[int, int]) -> bytes:
    start, size = handle
    block, trailer = data[start : start + size + 1], data[start + size + 1 : start + size + _TRAILER_BYTES]
    if len(trailer) < 4 or int.from_bytes(trailer, "little") != masked_crc(block):
        raise DamageError(f"the checksum of its block at byte {start} is wrong")
    content, compression = block[:-1], block[-1]
    if compression > 1:
        raise DamageError(f"its block at byte {start} is compressed in an unknown way")
    return decompress(content) if compression == 1 else content


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The entries of a block: a key leaves out what it shares with the one before it."""
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 * (restarts + 1)  # the places where a key is whole come last, and their number
    if end < 0:
        raise DamageError("a block of it is too short")
    content, at, key, bytes_of_keys = block[:end], 0, b"", 0
    while at < end:
        shared, at = read_varint(content, at)
        own, at = read_varint(content, at)
        size, at = read_varint(content, at)
        if shared > len(key) or at + own + size > end:
            raise DamageError("an entry of it is longer than its block")
        bytes_of_keys += shared + own
        if bytes_of_keys > _KEYS_THAT_SHARE * len(block):
            raise DamageError("its keys share more than TensorFlow lets them share")
        key = key[:shared] + content[at : at + own]
        yield key, content[at + own : at + own + size]
        at += own + size
