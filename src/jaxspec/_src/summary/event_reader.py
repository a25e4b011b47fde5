"""Reads the scalars in the event files of a directory."""

import itertools
import logging
import math
import os
from typing import TYPE_CHECKING

import numpy as np

from jaxspec._src.base.files import files_in, open_file
from jaxspec._src.base.paths import absolute_path, join
from jaxspec._src.summary.records import DamagedFileError, read_records

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
    for path in _event_files(absolute_path(logdir), warned):
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
        # As in TensorBoard, which checks no more of a name.
        return [join(logdir, name) for name in files_in(logdir) if "tfevents" in name]
    except OSError as error:
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
        with open_file(path) as file:
            for start, data in read_records(file):
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
    except DamagedFileError as error:
        troubles.append(str(error))
    except MemoryError:
        troubles.append("it holds a record too large for the memory")
    except OSError as error:
        troubles.append(f"it cannot be read: {error}")
    return math.inf if begun is None else begun, scalars, troubles[0] if troubles else None


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
