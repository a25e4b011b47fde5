"""Event files: one open writer for each directory."""

import atexit
import contextlib
import errno
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from jaxspec._src.base.paths import absolute_path
from jaxspec._src.summary import protos
from jaxspec._src.summary.context import default_writer

_logger = logging.getLogger("jaxspec")
_FLUSH_SECS = 10.0
_LOOK_SECS = 1.0
"""How often it is looked whether the file is still there. Asking is a system call, which lets other threads go first."""
_RETRY_SECS = 10.0
"""How long after a failure it is tried again. Until then summaries are dropped at once, so that a full disk costs no time."""
_LARGEST_SHOWN = 32


class SummaryWriter:
    """An open event file of one directory. Made by `create_file_writer`.

    Events are written at once, by the thread that calls, and flushed every few seconds. Any thread may call.

    Summaries tell about a run and must not end it: where the file cannot be written, or the directory cannot be made,
    there is one warning, and what was to be written is dropped. It is tried again some seconds later, with a new file,
    because the one that failed may break off inside a record.

    Args:
      logdir: where the file goes.
      clock: seconds since some start.
    """

    def __init__(self, logdir: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.logdir = logdir
        self.user_tags: set[str] = set()
        """The names under which user code wrote summaries here: by the functions of `summary`, not by these methods."""
        self._clock = clock
        self._lock = threading.RLock()
        self._flush_secs = _FLUSH_SECS
        self._max_queue: int | None = None
        self._file: Any = None
        self._path = ""
        self._flushed, self._unflushed = clock(), 0
        self._looked = -math.inf
        self._warned: set[str] = set()
        self._start: int | None = None
        self._failing, self._retry_at = False, -math.inf

    def begin_run(self, step: int) -> None:
        """Begins a run at a global step: what an earlier run wrote at later steps is void, and no longer shown."""
        with self._lock:
            self.user_tags.clear()
            self._start = step

    def flush_when(self, max_queue: int | None = None, flush_millis: float | None = None) -> None:
        """Sets how often events are flushed; see `create_file_writer`. None leaves a limit as it is."""
        with self._lock:
            if max_queue is not None:
                self._max_queue = max_queue
            if flush_millis is not None:
                self._flush_secs = flush_millis / 1000

    def scalar(self, name: str, value: float, step: int) -> None:
        """Writes one number at a global step."""
        self.scalars({name: value}, step)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Writes numbers by tag as one event, which costs less than an event for each."""
        if not values:
            return
        event = protos.event(step)
        for name, value in values.items():
            event.summary.value.add(tag=name, simple_value=value)
        self._write(event)

    def text(self, name: str, text: str, step: int) -> None:
        """Writes Markdown at a global step."""
        event = protos.event(step)
        protos.add_text(event, name, text)
        self._write(event)

    def histogram(self, name: str, values: Any, step: int) -> None:
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
            event = protos.event(step)
            protos.add_histogram(event, name, finite)
            self._write(event)

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Writes uint8 pixels `[height, width, channels]` at a global step; ImportError without Pillow."""
        event = protos.event(step)
        protos.add_image(event, name, pixels)
        self._write(event)

    def array(self, name: str, value: Any, step: int) -> None:
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

    def _write(self, event: Any) -> None:
        record = event.SerializeToString()
        with self._lock:
            now = self._clock()
            if now < self._retry_at:
                return
            with self._failures_told():
                if self._file is None or self._is_gone(now):
                    self.close()
                    self._open()
                if self._start is not None:
                    self._file.write(protos.start_event(self._start + 1).SerializeToString())
                    self._start = None
                self._file.write(record)
            self._unflushed += 1
            due = self._max_queue is not None and self._unflushed >= self._max_queue
            if due or now - self._flushed >= self._flush_secs:
                self.flush()

    def warn_if_unwritable(self) -> None:
        """Warns if nothing could be written to the directory now, or it could not be made: before long work is done."""
        place = self.logdir
        while not os.path.lexists(place):
            place = os.path.dirname(place)
        effective = os.access in os.supports_effective_ids
        if not os.path.isdir(place):
            number = errno.ENOTDIR
        elif not os.access(place, os.W_OK | os.X_OK, effective_ids=effective):
            number = errno.EACCES
        else:
            return
        with self._lock:
            self._tell(OSError(number, os.strerror(number), place))

    @contextlib.contextmanager
    def _failures_told(self) -> Iterator[None]:
        """Within it, an error of the file system is a warning, and ends the file."""
        try:
            yield
        except OSError as error:
            self._tell(error)
            self._retry_at = self._clock() + _RETRY_SECS
            file, self._file = self._file, None
            with contextlib.suppress(OSError):
                if file is not None:
                    file.close()
            with contextlib.suppress(OSError):
                if self._path and not os.path.getsize(self._path):
                    os.remove(self._path)  # or a full disk would be full of empty files

    def _tell(self, error: OSError) -> None:
        if not self._failing:
            self._failing = True
            _logger.warning(
                "Summaries cannot be written to %s: %s. The run goes on, and what it computes is returned, but summaries are "
                "dropped until writing works again. Make room on the disk, make the directory writable, or use another one.",
                *(self._path or self.logdir, error),
            )

    def _is_gone(self, now: float) -> bool:
        """Whether the directory was removed, and the file with it."""
        if now - self._looked < _LOOK_SECS:
            return False
        self._looked = now
        return not os.path.exists(self._path)

    def _open(self) -> None:
        # Not tensorboardX.SummaryWriter: it sends events through a queue between processes, and its flush does not
        # wait for them.
        from tensorboardX.record_writer import RecordWriter

        self._path = ""
        os.makedirs(self.logdir, exist_ok=True)
        # The start of the name is what TensorBoard looks for; a reader that sorts names has the files in order of time.
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{time.time_ns()}"
        self._path = os.path.join(self.logdir, name)
        self._file = RecordWriter(self._path)
        self._file.write(protos.version_event().SerializeToString())

    @contextlib.contextmanager
    def as_default(self) -> Iterator["SummaryWriter"]:
        """Within it, summaries go to this writer."""
        with default_writer(self):
            yield self

    def flush(self) -> None:
        """Makes what was written visible to readers, and safe on the disk."""
        with self._lock:
            if self._file is not None:
                with self._failures_told():
                    self._file.flush()
                    if self._failing:
                        self._failing = False
                        _logger.warning("Summaries are written again, to %s.", self._path)
            self._flushed, self._unflushed = self._clock(), 0
            self._looked = -math.inf  # a run ends with a flush, and before the next one its directory may go

    def close(self) -> None:
        """Closes the file. Writing again opens another."""
        with self._lock:
            if self._file is not None:
                self.flush()
            if self._file is not None:  # a flush that failed has closed it
                with self._failures_told():
                    self._file.close()
                self._file = None


def _markdown_table(matrix: np.ndarray) -> str:
    rows = [["", *(f"**{i}**" for i in range(matrix.shape[1]))], ["---"] * (matrix.shape[1] + 1)]
    rows += [[f"**{i}**", *(f"{entry:g}" for entry in row)] for i, row in enumerate(matrix)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


# The one cache of the library: two writers of one directory would write two event files.
_writers: dict[str, SummaryWriter] = {}
_MOST_OPEN = 64
_lock = threading.Lock()


def create_file_writer(logdir: Any, max_queue: int | None = None, flush_millis: float | None = None) -> SummaryWriter:
    """The writer of a directory; always the same one, so a line that runs every step may call this.

    Its file is opened at the first summary. Of very many directories, those used least recently are closed meanwhile.

    Args:
      logdir: where event files go.
      max_queue: flush as soon as so many events were written since the last flush. None: leave it as it is, at first
        without limit. A flush waits for the disk: a small number slows the host function down.
      flush_millis: flush at an event if the last flush is so many milliseconds ago. None: leave it as it is, at first
        10000. There is no timer: between events nothing is flushed. The run's own writer is flushed when the run ends,
        every writer when the program ends.

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


@atexit.register
def _close_writers() -> None:
    for writer in list(_writers.values()):
        writer.close()
