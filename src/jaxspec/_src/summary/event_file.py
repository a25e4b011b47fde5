"""EventFile: the event file of one directory, which is written anew after a failure."""

import contextlib
import errno
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from jaxspec._src.base.types import Clock
from jaxspec._src.device.processes import is_first_process
from jaxspec._src.summary import protos

if TYPE_CHECKING:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import RecordWriter

_logger = logging.getLogger("jaxspec")
_FLUSH_SECS = 10.0
_CHECK_SECS = 1.0
"""Seconds between two checks that the file still exists. Such a system call lets other threads go first."""
_RETRY_SECS = 10.0
"""Seconds from a failure to the next attempt. Until then events are dropped at once, so that a full disk costs no
time."""


class EventFile:
    """The open event file of a directory.

    Events are written at once, by the thread that calls, and flushed every few seconds. Any thread may call.

    Summaries report on a run and must not end it: if the file cannot be written, or the directory cannot be made, there
    is one warning, and the events are dropped. Some seconds later a new file is opened, because the one that failed may
    end inside a record.

    Args:
      logdir: the directory.
      clock: seconds since some start.
    """

    def __init__(self, logdir: str, clock: Clock) -> None:
        self._logdir, self._clock = logdir, clock
        self._lock = threading.RLock()
        self.flush_secs, self.max_queue = _FLUSH_SECS, math.inf
        """Events are flushed after so many seconds, or as soon as so many were written."""
        self._file: RecordWriter | None = None
        self._path = ""
        self._flushed, self._unflushed = clock(), 0
        self._checked = -math.inf
        self._run_start: int | None = None
        self._failing, self._retry_at = False, -math.inf

    def begin_run(self, step: int) -> None:
        """Begins a run at a global step: readers no longer show what an earlier run wrote at later steps."""
        with self._lock:
            self._run_start = step

    def write(self, event: "Event") -> None:
        """Writes an event, and flushes if that is due. Of several processes only process 0 writes."""
        if not is_first_process():
            return
        record = event.SerializeToString()
        with self._lock:
            now = self._clock()
            if now < self._retry_at:
                return
            with self._failures_warned():
                file = self._opened(now)
                if self._run_start is not None:
                    # Here TensorBoard discards what it has read of this step and of later ones.
                    start = protos.event(step=self._run_start + 1, session_log={"status": "START"})
                    file.write(start.SerializeToString())
                    self._run_start = None
                file.write(record)
            self._unflushed += 1
            if self._unflushed >= self.max_queue or now - self._flushed >= self.flush_secs:
                self.flush()

    def warn_if_unwritable(self) -> None:
        """Warns if the directory cannot be written to, or cannot be made: before long work is done."""
        if not is_first_process():
            return
        place = self._logdir
        while not os.path.lexists(place):
            place = os.path.dirname(place)
        is_dir, effective = os.path.isdir(place), os.access in os.supports_effective_ids
        if is_dir and os.access(place, os.W_OK | os.X_OK, effective_ids=effective):
            return
        number = errno.EACCES if is_dir else errno.ENOTDIR
        with self._lock:
            self._warn(OSError(number, os.strerror(number), place))

    def flush(self) -> None:
        """Makes what was written visible to readers, and safe on the disk."""
        with self._lock:
            if self._file is not None:
                with self._failures_warned():
                    self._file.flush()
                    if self._failing:
                        self._failing = False
                        _logger.warning("Summaries are written again, to %s.", self._path)
            self._flushed, self._unflushed = self._clock(), 0
            self._checked = -math.inf  # a run ends with a flush, and its directory may be removed before the next one

    def close(self) -> None:
        """Closes the file. Writing again opens another."""
        with self._lock:
            self.flush()
            file, self._file = self._file, None  # a flush that failed has closed it
            if file is not None:
                with self._failures_warned():
                    file.close()

    @contextlib.contextmanager
    def _failures_warned(self) -> Iterator[None]:
        """Within it, an error of the file system is a warning, and ends the file."""
        try:
            yield
        except OSError as error:
            self._warn(error)
            self._retry_at = self._clock() + _RETRY_SECS
            file, self._file = self._file, None
            with contextlib.suppress(OSError):
                if file is not None:
                    file.close()
            with contextlib.suppress(OSError):
                if self._path and not os.path.getsize(self._path):
                    os.remove(self._path)  # or a full disk would be full of empty files

    def _warn(self, error: OSError) -> None:
        if not self._failing:
            self._failing = True
            _logger.warning(
                "Summaries cannot be written to %s: %s. The run goes on, and what it computes is returned, but "
                "summaries are dropped until writing works again. Make room on the disk, make the directory writable, "
                "or use another one.",
                *(self._path or self._logdir, error),
            )

    def _opened(self, now: float) -> "RecordWriter":
        """The open file: another one if the directory was removed, and the file with it."""
        if self._file is not None and now - self._checked >= _CHECK_SECS:
            self._checked = now
            if not os.path.exists(self._path):
                self.close()
        if self._file is None:
            # Not tensorboardX.SummaryWriter: it sends events through a queue between processes, and its flush does not
            # wait for them.
            from tensorboardX.record_writer import RecordWriter

            self._path = ""
            os.makedirs(self._logdir, exist_ok=True)
            # TensorBoard recognises the file by the start of its name; sorted names are in order of time.
            name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{time.time_ns()}"
            self._path = os.path.join(self._logdir, name)
            self._file = RecordWriter(self._path)
            self._file.write(protos.event(file_version="brain.Event:2").SerializeToString())
        return self._file
