"""Writes the tables that TensorFlow's `.index` files are, well-formed or not."""

import struct

import crc32c


def masked_crc(data):
    crc = crc32c.crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def varint(value):
    """A number as protocol buffers write it; a negative one as one of 64 bits."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def block(entries, compress=None):
    """A block with its trailer. Each 16th key is whole, as in TensorFlow."""
    out, restarts, last = bytearray(), [], b""
    for number, (key, value) in enumerate(entries):
        shared = 0
        if number % 16 == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    restarts = restarts or [0]
    out += b"".join(struct.pack("<I", place) for place in [*restarts, len(restarts)])
    return sealed(bytes(out) + b"\0" if compress is None else compress(bytes(out)) + b"\1")


def sealed(content):
    """The content of a block, and its kind of compression, with their checksum."""
    return content + struct.pack("<I", masked_crc(content))


def table(entries, compress=None, entries_a_block=8):
    """A table of `{key: value}`."""
    entries = sorted(entries.items())
    blocks = [entries[at : at + entries_a_block] for at in range(0, len(entries), entries_a_block)]
    return joined([block(part, compress) for part in blocks], [part[-1][0] for part in blocks], compress)


def joined(blocks, last_keys, compress=None, left_out=()):
    """A table of blocks that are made already. Its list of them leaves out those with the numbers `left_out`."""
    out, handles = b"", []
    for content in blocks:
        handles.append(handle(len(out), len(content) - 5))
        out += content
    meta = block([])
    listed = [pair for n, pair in enumerate(zip(last_keys, handles, strict=True)) if n not in left_out]
    index = block(listed, compress)
    footer = handle(len(out), len(meta) - 5) + handle(len(out) + len(meta), len(index) - 5)
    return out + meta + index + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def handle(start, size):
    return varint(start) + varint(size)


def field(number, value):
    """A field of a message: a number, or bytes."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def header(shards=1, endianness=0, version=b"\x08\x01"):
    """The entry of the key b""."""
    return field(1, shards) + field(2, endianness) + field(3, version)


def entry(shape, data, dtype=1, shard=0, offset=0, size=None, crc=None, slices=()):
    """The entry of a tensor whose bytes are `data`."""
    dims = b"".join(field(2, field(1, length)) for length in shape)
    parts = b"".join(
        field(7, b"".join(field(1, field(1, start) + field(2, length)) for start, length in extents))
        for extents in slices
    )
    crc = varint(6 << 3 | 5) + struct.pack("<I", masked_crc(data) if crc is None else crc)
    size = len(data) if size is None else size
    return field(1, dtype) + field(2, dims) + field(3, shard) + field(4, offset) + field(5, size) + crc + parts
