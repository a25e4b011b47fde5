"""SummaryWriter: writes to the event file of a directory, and to the sinks of a run. One writer for each directory."""

import atexit
import contextlib
import contextvars
import copy
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from jaxspec._src.base.paths import absolute_path, in_bucket
from jaxspec._src.base.types import Clock, T
from jaxspec._src.summary import protos
from jaxspec._src.summary.event_file import EventFile
from jaxspec._src.summary.sink import Sink

if TYPE_CHECKING:
    from tensorboardX.proto.event_pb2 import Event

_logger = logging.getLogger("jaxspec")
_LARGEST_SHOWN = 32


class SummaryWriter:
    """Writes summaries to the event file of a directory. Made by `create_file_writer`; a run's own writes to its sinks,
    too.

    Events are written at once, by the thread that calls, and flushed every few seconds. Any thread may call.

    Summaries report on a run and must not end it: if the file cannot be written, or the directory cannot be made, there
    is one warning, and what was to be written is dropped until writing works again.

    Args:
      logdir: the directory of the event file.
      clock: seconds since some start.
    """

    def __init__(self, logdir: str, *, clock: Clock = time.monotonic) -> None:
        self.logdir = logdir
        self.user_tags: set[str] = set()
        """The tags that user code wrote here with the functions of `summary`; not those written with these methods."""
        self._file = EventFile(logdir, clock)
        self._sinks: tuple[Sink, ...] = ()
        self._prefix = ""
        self._warned: set[str] = set()

    def with_sinks(self, sinks: Sequence[Sink], *, prefix: str = "") -> "SummaryWriter":
        """A writer to the same file that writes to sinks, too; itself if there are none.

        Args:
          sinks: of the user. An exception of one comes back, with a note, when the event file and all sinks were
            written to.
          prefix: put before the tags in the sinks.
        """
        if not sinks:
            return self
        writer = copy.copy(self)
        writer._sinks, writer._prefix = tuple(sinks), prefix
        return writer

    def begin_run(self, step: int) -> None:
        """Begins a run at a global step: readers of the event file no longer show what an earlier run wrote at later
        steps."""
        self.user_tags.clear()
        self._file.begin_run(step)

    def flush_when(self, max_queue: int | None = None, flush_millis: float | None = None) -> None:
        """Sets how often events are flushed; see `create_file_writer`. None leaves a limit as it is."""
        if max_queue is not None:
            self._file.max_queue = max_queue
        if flush_millis is not None:
            self._file.flush_secs = flush_millis / 1000

    def warn_if_unwritable(self) -> None:
        """Warns if the directory cannot be written to, or cannot be made: before long work is done."""
        self._file.warn_if_unwritable()

    def scalar(self, name: str, value: float, step: int) -> None:
        """Writes one number at a global step."""
        self.scalars({name: value}, step)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Writes numbers by tag as one event, which costs less than an event for each."""
        if values:
            event = protos.event(step=step)
            for name, value in values.items():
                event.summary.value.add(tag=name, simple_value=value)
            self._file.write(event)
        for name, value in values.items() if self._sinks else ():
            self._call_sinks("scalar", self._prefix + name, float(value), step)

    def text(self, name: str, text: str, step: int) -> None:
        """Writes Markdown at a global step."""
        self._write("text", protos.add_text, name, text, step)

    def histogram(self, name: str, values: ArrayLike, step: int) -> None:
        """Writes the distribution of the finite values of an array at a global step; nothing if there are none."""
        values = np.asarray(values, np.float64).ravel()
        finite = values[np.isfinite(values)]
        if finite.size < values.size and name not in self._warned:
            self._warned.add(name)
            _logger.warning(
                "Histogram %s, step %d: %d of %d values are not finite and are left out, here and later on.",
                *(name, step, values.size - finite.size, values.size),
            )
        if finite.size:
            self._write("histogram", protos.add_histogram, name, finite, step)

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Writes uint8 pixels `[height, width, channels]` at a global step; ImportError without Pillow."""
        self._write("image", protos.add_image, name, pixels, step)

    def array(self, name: str, value: ArrayLike, step: int) -> None:
        """Writes an array in the form that shows it best.

        One number as a scalar; a vector of up to 32 as a scalar for each entry, `NAME/0`, `NAME/1`, ...; a matrix of up
        to 32 x 32, such as a confusion matrix, as a table; anything larger as a histogram.
        """
        value = np.asarray(value)
        if value.size == 1:
            self.scalar(name, float(value.reshape(())), step)
        elif value.ndim == 1 and value.size <= _LARGEST_SHOWN:
            self.scalars({f"{name}/{i}": float(entry) for i, entry in enumerate(value)}, step)
        elif value.ndim == 2 and max(value.shape) <= _LARGEST_SHOWN:
            self.text(name, _markdown_table(value), step)
        else:
            self.histogram(name, value, step)

    def flush(self) -> None:
        """Makes what was written visible to readers, and safe on the disk."""
        self._file.flush()
        self._call_sinks("flush")

    def release(self) -> None:
        """As `flush`, and closes the event file until the next summary, which is appended to it."""
        self._file.release()
        self._call_sinks("flush")

    def close(self) -> None:
        """Closes the event file. Writing again opens another."""
        self._file.close()

    @contextlib.contextmanager
    def as_default(self) -> Iterator["SummaryWriter"]:
        """Within it, summaries go to this writer."""
        token = default_writer.set(self)
        try:
            yield self
        finally:
            default_writer.reset(token)

    def _write(self, method: str, add: Callable[["Event", str, T], None], name: str, value: T, step: int) -> None:
        event = protos.event(step=step)
        add(event, name, value)
        self._file.write(event)
        self._call_sinks(method, self._prefix + name, value, step)

    def _call_sinks(self, method: str, *args: object) -> None:
        """Calls a method of every sink, and then raises the first exception."""
        errors = []
        for sink in self._sinks:
            try:
                getattr(sink, method)(*args)
            except Exception as error:
                error.add_note(f"raised by {type(sink).__name__}.{method}, one of RunConfig(writers=...)")
                errors.append(error)
        if errors:
            raise errors[0]


def _markdown_table(matrix: np.ndarray) -> str:
    rows = [["", *(f"**{i}**" for i in range(matrix.shape[1]))], ["---"] * (matrix.shape[1] + 1)]
    rows += [[f"**{i}**", *(f"{entry:g}" for entry in row)] for i, row in enumerate(matrix)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


default_writer: contextvars.ContextVar[SummaryWriter | None] = contextvars.ContextVar("jaxspec_writer", default=None)
"""The writer that `as_default` has made that of `summary.scalar` and its siblings."""

# The one cache of the library: two writers of one directory would write two event files.
_writers: dict[str, SummaryWriter] = {}
_MOST_OPEN = 64
_lock = threading.Lock()


def create_file_writer(
    logdir: str | os.PathLike[str], max_queue: int | None = None, flush_millis: float | None = None
) -> SummaryWriter:
    """The writer of a directory; always the same one, so a line that runs every step may call this.

    Its file is opened at the first summary. That of a run's own writer is closed when the run ends; later summaries are
    appended to it. At most 64 files are open: beyond that, the one used least recently is closed.

    Args:
      logdir: the directory of the event files.
      max_queue: flush as soon as so many events were written since the last flush. None: leave it as it is, at first
        without limit. A flush waits for the disk: a small number slows the host function down.
      flush_millis: flush at an event if the last flush is so many milliseconds ago. None: leave it as it is, at first
        10000. There is no timer: between events nothing is flushed. The run's own writer is flushed when the run ends,
        every writer when the program ends.

    Events for a bucket are kept in memory and uploaded at most every 30 seconds, whatever `max_queue` and
    `flush_millis` say, when `flush` is called, and when a run ends. Flush such a writer before the program ends: then
    it is too late for an upload, and there is a warning.

    Raises:
      ValueError: if max_queue is less than 1 or flush_millis negative.
    """
    if max_queue is not None and max_queue < 1:
        raise ValueError(f"create_file_writer: max_queue is {max_queue}; expected 1 or more, or None for no limit.")
    if flush_millis is not None and flush_millis < 0:
        raise ValueError(f"create_file_writer: flush_millis is {flush_millis}; expected 0 or more, in milliseconds.")
    logdir = absolute_path(logdir)
    with _lock:
        writer = _writers.pop(logdir, None) or SummaryWriter(logdir)
        _writers[logdir] = writer  # the last used is the last in the dict
        if len(_writers) > _MOST_OPEN:
            _writers.pop(next(iter(_writers))).close()
    writer.flush_when(max_queue, flush_millis)
    return writer


def flush_buckets() -> None:
    """Uploads what the writers of event files in buckets still keep in memory."""
    for logdir, writer in list(_writers.items()):
        if in_bucket(logdir):
            writer.flush()


@atexit.register
def _close_writers() -> None:
    for writer in list(_writers.values()):
        writer.close()
