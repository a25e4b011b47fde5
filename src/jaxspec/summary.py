"""Summaries for TensorBoard, written on the host.

A host function writes to the writer in force: the one made default by `as_default()`, or the run's own. The step is
that of the run, unless given.
"""

import atexit
import contextlib
import contextvars
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

_FLUSH_SECS = 10
_LARGEST_SHOWN = 32


class SummaryWriter:
    """An open event file of one directory. Made by `create_file_writer`.

    Events are written at once, by the thread that calls, and flushed every few seconds.
    """

    def __init__(self, logdir: str) -> None:
        self.logdir = logdir
        self._events: Any = None
        self._flushed = time.monotonic()

    def scalar(self, name: str, value: float, step: int) -> None:
        """Writes one number at a global step."""
        from tensorboardX import summary

        self._write(summary.scalar(name, value), step)

    def text(self, name: str, text: str, step: int) -> None:
        """Writes Markdown at a global step."""
        from tensorboardX import summary

        self._write(summary.text(name, text), step)

    def histogram(self, name: str, values: Any, step: int) -> None:
        """Writes the distribution of the values of an array at a global step."""
        from tensorboardX import summary

        self._write(summary.histogram(name, np.asarray(values, np.float64).ravel(), "auto"), step)

    def array(self, name: str, value: Any, step: int) -> None:
        """Writes an array in the form that shows it best.

        One number as a scalar; a vector of up to 32 as a scalar for each entry, `NAME/0`, `NAME/1`, ...; a matrix of up
        to 32 x 32, such as a confusion matrix, as a table; anything larger as a histogram.
        """
        value = np.asarray(value)
        if value.size == 1:
            self.scalar(name, float(value.reshape(())), step)
        elif value.ndim == 1 and value.size <= _LARGEST_SHOWN:
            for i, entry in enumerate(value):
                self.scalar(f"{name}/{i}", float(entry), step)
        elif value.ndim == 2 and max(value.shape) <= _LARGEST_SHOWN:
            self.text(name, _markdown_table(value), step)
        elif value.size:
            self.histogram(name, value, step)

    def _write(self, summary: Any, step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event

        if self._events is None or not os.path.isdir(self.logdir):
            self.close()  # the directory was removed, and the file with it
            self._events = self._open()
        self._events.write_event(Event(wall_time=time.time(), step=step, summary=summary))
        if time.monotonic() - self._flushed > _FLUSH_SECS:
            self.flush()

    def _open(self) -> Any:
        # Not tensorboardX.SummaryWriter: it sends events through a queue between processes, and its flush does not
        # wait for them.
        from tensorboardX.event_file_writer import EventsWriter

        os.makedirs(self.logdir, exist_ok=True)
        return EventsWriter(os.path.join(self.logdir, "events"), f".{os.getpid()}.{time.time_ns()}")

    @contextlib.contextmanager
    def as_default(self) -> Iterator["SummaryWriter"]:
        """Within it, summaries go to this writer."""
        token = _writer.set(self)
        try:
            yield self
        finally:
            _writer.reset(token)

    def flush(self) -> None:
        """Makes what was written visible to readers."""
        if self._events is not None:
            self._events.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Closes the file. Writing again opens another."""
        if self._events is not None:
            self._events.close()
            self._events = None


def _markdown_table(matrix: np.ndarray) -> str:
    rows = [["", *(f"**{i}**" for i in range(matrix.shape[1]))], ["---"] * (matrix.shape[1] + 1)]
    rows += [[f"**{i}**", *(f"{entry:g}" for entry in row)] for i, row in enumerate(matrix)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


@dataclasses.dataclass(frozen=True)
class _Position:
    """Where the run stands while a host function runs."""

    step: int
    writer: SummaryWriter | None
    """The run's own writer; None in evaluation, where a host_call's summaries are not written."""


# The one cache of the library: two writers of one directory would write two event files.
_writers: dict[str, SummaryWriter] = {}
_MOST_OPEN = 64
_lock = threading.Lock()
_writer: contextvars.ContextVar[SummaryWriter | None] = contextvars.ContextVar("jaxspec_summary_writer", default=None)
_position: contextvars.ContextVar[_Position | None] = contextvars.ContextVar("jaxspec_summary_position", default=None)


def create_file_writer(logdir: Any) -> SummaryWriter:
    """The writer of a directory; always the same one, so a line that runs every step may call this.

    Its file is opened at the first summary. Of very many directories, those used least recently are closed meanwhile.
    """
    logdir = os.path.abspath(os.fspath(logdir))
    with _lock:
        writer = _writers.pop(logdir, None) or SummaryWriter(logdir)
        _writers[logdir] = writer  # the last used is the last in the dict
        if len(_writers) > _MOST_OPEN:
            _writers.pop(next(iter(_writers))).close()
        return writer


@atexit.register
def _close_writers() -> None:
    for writer in list(_writers.values()):
        writer.close()


def scalar(name: str, value: Any, step: int | None = None) -> None:
    """Writes the mean of `value` under the tag `name`.

    Args:
      name: the tag.
      value: a number or an array; of an array the mean is written, so a scalar tensor that arrives as one entry for
        each shard needs no care.
      step: the global step; None: that of the run.

    Raises:
      ValueError: if no step is given and no run is calling, or if there is no writer.
    """
    position = _position.get()
    writer = _writer.get()
    if writer is None and position is not None:
        if position.writer is None:
            return
        writer = position.writer
    if writer is None:
        raise ValueError(
            f"summary.scalar({name!r}): no writer. Write `with summary.create_file_writer(logdir).as_default():` around it."
        )
    if step is None:
        if position is None:
            raise ValueError(f"summary.scalar({name!r}): no step; outside host_call pass step=.")
        step = position.step
    writer.scalar(name, float(np.mean(np.asarray(value, np.float64))), int(step))


def host_call(**tensors: Any) -> tuple[Callable[..., None], dict[str, Any]]:
    """The host_call that writes each tensor as a scalar, in training: `host_call=summary.host_call(loss=loss)`.

    Args:
      tensors: arrays of this shard by tag; the mean over everything and all shards is written at each step.
    """

    def write_scalars(**tensors: Any) -> None:
        position = _position.get()
        if position is not None and position.writer is None:
            return
        for name, value in tensors.items():
            scalar(name, value)

    return write_scalars, tensors


@contextlib.contextmanager
def run_position(step: int, writer: SummaryWriter | None) -> Iterator[None]:
    """Within it, host functions are at `step` of a run whose own writer is `writer`."""
    token = _position.set(_Position(step, writer))
    try:
        yield
    finally:
        _position.reset(token)
