"""Reads the scalars in the event files of a directory."""

import itertools
import logging
import math
import os
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from tensorboardX.proto.summary_pb2 import Summary

_logger = logging.getLogger("jaxspec")


def read_scalars(logdir: str | os.PathLike[str], warned: set[str] | None = None) -> dict[int, dict[str, float]]:
    """The scalars of all event files that lie directly in a directory, whoever wrote them.

    Files are read in the order in which they were begun; of two values of one tag at one step the later one counts. A
    damaged file raises nothing. There is one warning for it, and what can be read of it counts: all but a damaged
    record, or, if the file ends inside a record or a checksum is wrong, what comes before that.

    Args:
      logdir: the directory; one that does not exist has no scalars.
      warned: paths that there was a warning about, which get no other; new ones are added. None: none yet.

    Returns:
      `{step: {tag: value}}`, steps ascending. Values have the precision of the file, float32.
    """
    warned = set() if warned is None else warned
    files = []
    for path in _event_files(os.fspath(logdir), warned):
        begun, scalars, trouble = _read_file(path)
        if trouble is not None:
            _warn_once(warned, path, trouble)
        files.append((begun, path, scalars))
    found: dict[int, dict[str, float]] = {}
    for step, tag, value in itertools.chain.from_iterable(scalars for *_, scalars in sorted(files)):
        found.setdefault(step, {})[tag] = value
    return dict(sorted(found.items()))


def _warn_once(warned: set[str], path: str, trouble: str) -> None:
    if path not in warned:
        warned.add(path)
        _logger.warning(
            "Event file %s: %s. What can be read of it and of other files counts. Remove the file to be rid of this "
            "warning.",
            *(path, trouble),
        )


def _event_files(logdir: str, warned: set[str]) -> list[str]:
    """The paths of the event files."""
    try:
        with os.scandir(logdir) as entries:
            # As in TensorBoard, which checks no more of a name.
            return [entry.path for entry in entries if "tfevents" in entry.name and entry.is_file()]
    except OSError as error:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            _warn_once(warned, logdir, f"the directory cannot be read: {error}")
        return []


def _read_file(path: str) -> tuple[float, list[tuple[int, str, float]], str | None]:
    """(wall time of the first event in seconds, infinite if there is none; the scalars as (step, tag, value); what was
    wrong first, or None)."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from tensorboardX.proto.event_pb2 import Event

    begun: float | None = None
    scalars: list[tuple[int, str, float]] = []
    troubles: list[str] = []
    try:
        with open(path, "rb") as file:
            for start, data in _records(file):
                try:
                    event = Event.FromString(data)
                except DecodeError:
                    troubles.append(f"the record at byte {start} holds no event")
                    continue
                if begun is None:
                    begun = event.wall_time if math.isfinite(event.wall_time) else math.inf
                for value in event.summary.value:
                    try:
                        number = _number(value)
                    except ValueError as error:
                        troubles.append(f"the value of {value.tag!r} at step {event.step} is no scalar: {error}")
                        continue
                    if number is not None:
                        scalars.append((event.step, value.tag, number))
    except _DamagedError as error:
        troubles.append(str(error))
    except MemoryError:
        troubles.append("it holds a record too large for the memory")
    except OSError as error:
        troubles.append(f"it cannot be read: {error}")
    return math.inf if begun is None else begun, scalars, troubles[0] if troubles else None


class _DamagedError(Exception):
    """The file does not continue with a whole record."""


def _records(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yields (start in bytes, data) of the records of a TFRecord file: each is length, its checksum, data, their
    checksum."""
    from tensorboardX.record_writer import masked_crc32c

    while header := file.read(12):
        start = file.tell() - len(header)
        data, footer = b"", b""
        if len(header) == 12:
            length, checksum = struct.unpack("<QI", header)
            if checksum != masked_crc32c(header[:8]):
                raise _DamagedError(f"wrong checksum at byte {start}")
            # Checked before the data are read: a damaged length may be any number.
            if length <= os.fstat(file.fileno()).st_size - start - 16:
                data, footer = file.read(length), file.read(4)
        if len(footer) < 4:
            raise _DamagedError(
                f"it breaks off inside the record at byte {start} (its writer was killed, or is writing)"
            )
        if struct.unpack("<I", footer)[0] != masked_crc32c(data):
            raise _DamagedError(f"wrong checksum at byte {start}")
        yield start, data


# By the number that types.proto gives a dtype: the dtype, and the field of a tensor that holds its values.
_DTYPES = {
    1: (np.float32, "float_val"),
    2: (np.float64, "double_val"),
    3: (np.int32, "int_val"),
    9: (np.int64, "int64_val"),
}


def _number(value: "Summary.Value") -> float | None:
    """The number in a Summary.Value, in the old form or in TensorFlow 2's; None if it is not a scalar.

    Raises:
      ValueError: for a value that is marked as a scalar, and is not one.
    """
    if value.HasField("simple_value"):
        return float(value.simple_value)
    if not value.HasField("tensor") or value.metadata.plugin_data.plugin_name != "scalars":
        return None
    tensor = value.tensor
    if tensor.dtype not in _DTYPES:
        raise ValueError(f"its dtype has the number {tensor.dtype}; expected one of {sorted(_DTYPES)}")
    dtype, field = _DTYPES[tensor.dtype]
    if tensor.tensor_content:
        numbers = np.frombuffer(tensor.tensor_content, np.dtype(dtype).newbyteorder("<"))
    else:
        numbers = np.asarray(getattr(tensor, field))
    if numbers.size != 1:
        raise ValueError(f"it has {numbers.size} entries")
    return float(numbers[0])
