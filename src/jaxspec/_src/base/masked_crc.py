"""The checksum in TensorFlow's files: a CRC32C, masked because such files may hold checksums of each other."""

import crc32c


def masked_crc(data: bytes | bytearray) -> int:
    """The masked CRC32C of bytes, a number of 32 bits."""
    crc = crc32c.crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
