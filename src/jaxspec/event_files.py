"""Reads event files back: the scalars of a directory."""

import logging
import os
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

_logger = logging.getLogger("jaxspec")
_SCALARS_PLUGIN = "scalars"


def read_scalars(logdir: Any) -> dict[int, dict[str, float]]:
    """The scalars of all event files that lie directly in a directory, whoever wrote them.

    Files are read in the order in which they were begun; of two values of one tag at one step the later one counts. A
    file that breaks off inside a record, or whose checksum is wrong, is read up to there, with a warning.

    Args:
      logdir: the directory; one that does not exist holds no scalars.

    Returns:
      `{step: {tag: value}}`, steps ascending. Values have the precision of the file, float32.
    """
    scalars: dict[int, dict[str, float]] = {}
    for path in _event_files(os.fspath(logdir)):
        for event in _events(path):
            for value in event.summary.value:
                number = _scalar(value)
                if number is not None:
                    scalars.setdefault(event.step, {})[value.tag] = number
    return dict(sorted(scalars.items()))


def _event_files(logdir: str) -> list[str]:
    if not os.path.isdir(logdir):
        return []
    begun = []
    for entry in os.scandir(logdir):
        # As in TensorBoard, which asks for no more of a name.
        if "tfevents" in entry.name and entry.is_file():
            first = next(_events(entry.path), None)
            if first is not None:
                begun.append((first.wall_time, entry.name, entry.path))
    return [path for *_, path in sorted(begun)]


def _events(path: str) -> Iterator[Any]:
    from tensorboardX.proto.event_pb2 import Event

    with open(path, "rb") as file:
        try:
            while (record := _record(file)) is not None:
                yield Event.FromString(record)
        except _DamagedError as error:
            _logger.warning("Event file %s: %s. What follows is not read.", path, error)


class _DamagedError(Exception):
    """The file does not go on as a file of records does."""


def _record(file: BinaryIO) -> bytes | None:
    """The next record of a TFRecord file: length, checksum of the length, data, checksum of the data."""
    from tensorboardX.record_writer import masked_crc32c

    start = file.tell()
    header = file.read(12)
    if not header:
        return None
    if len(header) == 12:
        length, checksum = struct.unpack("<QI", header)
        if checksum != masked_crc32c(header[:8]):
            raise _DamagedError(f"wrong checksum at byte {start}")
        data, footer = file.read(length), file.read(4)
        if len(footer) == 4:
            if struct.unpack("<I", footer)[0] != masked_crc32c(data):
                raise _DamagedError(f"wrong checksum at byte {start}")
            return data
    raise _DamagedError(f"it breaks off inside the record at byte {start}")


def _scalar(value: Any) -> float | None:
    """The number in a Summary.Value, in the old form or in TensorFlow 2's; None if it is no scalar."""
    if value.HasField("simple_value"):
        return float(value.simple_value)
    if value.HasField("tensor") and value.metadata.plugin_data.plugin_name == _SCALARS_PLUGIN:
        tensor = value.tensor
        if tensor.tensor_content:
            return float(struct.unpack("<f", tensor.tensor_content)[0])
        return float(tensor.float_val[0])
    return None
