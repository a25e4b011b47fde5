"""The TFRecord format, in which event files are written: records of length, its checksum, data, their checksum."""

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO, Protocol

from jaxspec._src.base.masked_crc import masked_crc


class Writable(Protocol):
    """The part of a file that records need."""

    def write(self, data: bytes, /) -> object:
        """Appends bytes."""


class DamagedFileError(Exception):
    """The file does not continue with a whole record."""


def write_record(file: Writable, data: bytes) -> None:
    """Appends a record."""
    length = struct.pack("<Q", len(data))
    for part in (length, data):
        file.write(part)
        file.write(struct.pack("<I", masked_crc(part)))


def read_records(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yields (start in bytes, data) of the records of a file.

    Raises:
      DamagedFileError: if a checksum is wrong, or the file ends inside a record.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    while header := file.read(12):
        start = file.tell() - len(header)
        data, footer = b"", b""
        if len(header) == 12:
            length, checksum = struct.unpack("<QI", header)
            if checksum != masked_crc(header[:8]):
                raise DamagedFileError(f"wrong checksum at byte {start}")
            # Checked before the data are read: a damaged length may be any number.
            if length <= size - start - 16:
                data, footer = file.read(length), file.read(4)
        if len(footer) < 4:
            raise DamagedFileError(
                f"it breaks off inside the record at byte {start} (its writer was killed, or is writing)"
            )
        if struct.unpack("<I", footer)[0] != masked_crc(data):
            raise DamagedFileError(f"wrong checksum at byte {start}")
        yield start, data
