"""Reads the scalars in the event files of a directory."""

import logging
import math
import os
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

_logger = logging.getLogger("jaxspec")
_SCALARS_PLUGIN = "scalars"


class _Scalar(NamedTuple):
    step: int
    tag: str
    value: float


def read_scalars(logdir: str | os.PathLike[str], warned: set[str] | None = None) -> dict[int, dict[str, float]]:
    """The scalars of all event files that lie directly in a directory, whoever wrote them.

    Files are read in the order in which they were begun; of two values of one tag at one step the later one counts. A
    damaged file raises nothing. There is one warning for it, and what can be read of it counts: all but a damaged record,
    or, if the file ends inside a record or a checksum is wrong, what comes before that.

    Args:
      logdir: the directory; one that does not exist has no scalars.
      warned: paths that there was a warning about, which get no other; new ones are added. None: none yet.

    Returns:
      `{step: {tag: value}}`, steps ascending. Values have the precision of the file, float32.
    """
    warned = set() if warned is None else warned
    files = []
    for name, path in _event_files(os.fspath(logdir), warned):
        events = _Events(path)
        scalars = [scalar for event in events for scalar in _scalars(event, events)]
        if events.trouble is not None:
            _warn_once(warned, path, events.trouble)
        files.append((events.begun, name, scalars))
    found: dict[int, dict[str, float]] = {}
    for *_, scalars in sorted(files):
        for step, tag, value in scalars:
            found.setdefault(step, {})[tag] = value
    return dict(sorted(found.items()))


def _warn_once(warned: set[str], path: str, trouble: str) -> None:
    if path not in warned:
        warned.add(path)
        _logger.warning(
            "Event file %s: %s. What can be read of it and of other files counts. Remove the file to be rid of this warning.",
            *(path, trouble),
        )


def _event_files(logdir: str, warned: set[str]) -> list[tuple[str, str]]:
    """(name, path) of the event files."""
    try:
        with os.scandir(logdir) as entries:
            # As in TensorBoard, which checks no more of a name.
            return [(entry.name, entry.path) for entry in entries if "tfevents" in entry.name and entry.is_file()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        _warn_once(warned, logdir, f"the directory cannot be read: {error}")
        return []


class _Events:
    """The events of a file, as far as it can be read.

    Attributes:
      begun: the wall time of the first event, in seconds; infinite if there is none.
      trouble: the first thing that was wrong, or None.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.begun = math.inf
        self.trouble: str | None = None

    def found(self, trouble: str) -> None:
        """Notes that something is wrong, if nothing was before."""
        self.trouble = self.trouble or trouble

    def __iter__(self) -> Iterator["Event"]:
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
        from tensorboardX.proto.event_pb2 import Event

        try:
            with open(self._path, "rb") as file:
                is_first = True
                while (record := _record(file)) is not None:
                    start, data = record
                    try:
                        event = Event.FromString(data)
                    except DecodeError:
                        self.found(f"the record at byte {start} holds no event")
                        continue
                    if is_first and math.isfinite(event.wall_time):
                        self.begun = event.wall_time
                    is_first = False
                    yield event
        except _DamagedError as error:
            self.found(str(error))
        except MemoryError:
            self.found("it holds a record too large for the memory")
        except OSError as error:
            self.found(f"it cannot be read: {error}")


class _DamagedError(Exception):
    """The file does not continue with a whole record."""


def _record(file: BinaryIO) -> tuple[int, bytes] | None:
    """(start in bytes, data) of the next record of a TFRecord file: length, its checksum, data, their checksum."""
    from tensorboardX.record_writer import masked_crc32c

    start = file.tell()
    header = file.read(12)
    if not header:
        return None
    if len(header) == 12:
        length, checksum = struct.unpack("<QI", header)
        if checksum != masked_crc32c(header[:8]):
            raise _DamagedError(f"wrong checksum at byte {start}")
        # Checked before the data are read: a damaged length may be any number.
        if length <= os.fstat(file.fileno()).st_size - start - 16:
            data, footer = file.read(length), file.read(4)
            if len(footer) == 4:
                if struct.unpack("<I", footer)[0] != masked_crc32c(data):
                    raise _DamagedError(f"wrong checksum at byte {start}")
                return start, data
    raise _DamagedError(f"it breaks off inside the record at byte {start} (its writer was killed, or is writing)")


def _scalars(event: "Event", events: _Events) -> Iterator[_Scalar]:
    for value in event.summary.value:
        try:
            number = _number(value)
        except ValueError as error:
            events.found(f"the value of {value.tag!r} at step {event.step} is no scalar: {error}")
            continue
        if number is not None:
            yield _Scalar(event.step, value.tag, number)


# The numbers of types.proto, with the name in a tensor of what holds their values.
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
    if not value.HasField("tensor") or value.metadata.plugin_data.plugin_name != _SCALARS_PLUGIN:
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
