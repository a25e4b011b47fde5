"""EventFile: the event file of one directory, which is written anew after a failure."""

import contextlib
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from jaxspec._src.base.buckets import GrowingObject
from jaxspec._src.base.files import check_writable, find_file, make_directory, open_to_append, open_to_write, remove
from jaxspec._src.base.paths import in_bucket, join
from jaxspec._src.base.types import Clock
from jaxspec._src.device.processes import is_first_process
from jaxspec._src.summary import protos
from jaxspec._src.summary.records import write_record

if TYPE_CHECKING:
    from tensorboardX.proto.event_pb2 import Event

_logger = logging.getLogger("jaxspec")
_FLUSH_SECS = 10.0
_CHECK_SECS = 1.0
"""Seconds between two checks that the file still exists. Such a system call lets other threads go first."""
_UPLOAD_SECS = 30.0
"""The least seconds between two uploads to a bucket, but for those by hand. A kill loses what was written since."""
_OBJECT_BYTES = 4 << 20
"""In a bucket another file is begun after so many bytes, as each upload writes the whole file anew."""
_RETRY_SECS = 10.0
"""Seconds from a failure to the next attempt. Until then events are dropped at once, so that a full disk costs no
time."""


class EventFile:
    """The open event file of a directory.

    Events are written at once, by the thread that calls, and flushed every few seconds. Any thread may call.

    The file of a bucket is kept in memory. It is uploaded at most every 30 seconds, and when it is flushed by hand or
    closed. After 4 MiB another file is begun.

    Summaries report on a run and must not end it: if the file cannot be written, or the directory cannot be made, there
    is one warning, and the events are dropped. Some seconds later a new file is opened, because the one that failed may
    end inside a record. If an upload fails it is repeated later, and no more than 4 MiB are kept for it.

    Args:
      logdir: the directory.
      clock: seconds since some start.
    """

    def __init__(self, logdir: str, clock: Clock) -> None:
        self._logdir, self._clock = logdir, clock
        self._lock = threading.RLock()
        self.flush_secs, self.max_queue = _FLUSH_SECS, math.inf
        """Events are flushed after so many seconds, or as soon as so many were written."""
        self._file: BinaryIO | GrowingObject | None = None
        self._path, self._is_released = "", False
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
                if not self._is_full():
                    if self._run_start is not None:
                        # Here TensorBoard discards what it has read of this step and of later ones.
                        start = protos.event(step=self._run_start + 1, session_log={"status": "START"})
                        write_record(file, start.SerializeToString())
                        self._run_start = None
                    write_record(file, record)
            self._unflushed += 1
            if self._is_flush_due(now - self._flushed):
                self.flush()

    def _is_flush_due(self, secs: float) -> bool:
        if in_bucket(self._logdir):
            return secs >= max(self.flush_secs, _UPLOAD_SECS) or (self._is_full() and not self._failing)
        return self._unflushed >= self.max_queue or secs >= self.flush_secs

    def _is_full(self) -> bool:
        return isinstance(self._file, GrowingObject) and self._file.tell() >= _OBJECT_BYTES

    def warn_if_unwritable(self) -> None:
        """Warns if the directory cannot be written to, or cannot be made: before long work is done."""
        if not is_first_process():
            return
        try:
            check_writable(self._logdir)
        except OSError as error:
            with self._lock:
                self._warn(error)

    def flush(self) -> None:
        """Makes what was written visible to readers, and safe on the disk."""
        with self._lock:
            if self._file is not None:
                with self._failures_warned():
                    self._file.flush()
                    if not isinstance(self._file, GrowingObject):
                        os.fsync(self._file.fileno())
                    elif self._is_full():
                        self._file = None
                    if self._failing:
                        self._failing = False
                        _logger.warning("Summaries are written again, to %s.", self._path)
            self._flushed, self._unflushed = self._clock(), 0
            self._checked = -math.inf  # its directory may be removed before the next event

    def release(self) -> None:
        """Flushes the file, and closes it until the next event, which is appended to it.

        The file of a bucket stays in memory: nothing is open there, and to append to it each byte is uploaded again.
        """
        with self._lock:
            self.flush()
            if self._file is not None and not isinstance(self._file, GrowingObject):
                file, self._file, self._is_released = self._file, None, True
                with self._failures_warned():
                    file.close()

    def close(self) -> None:
        """Closes the file. Writing again opens another."""
        with self._lock:
            self.flush()
            self._is_released = False
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
            if isinstance(self._file, GrowingObject):
                return  # the next upload contains all
            self._retry_at = self._clock() + _RETRY_SECS
            file, self._file = self._file, None
            with contextlib.suppress(OSError):
                if file is not None:
                    file.close()
            with contextlib.suppress(OSError):
                found = find_file(self._path) if self._path else None
                if found is not None and not found.size:
                    remove(self._path)  # or a full disk would be full of empty files

    def _warn(self, error: OSError) -> None:
        if not self._failing:
            self._failing = True
            _logger.warning(
                "Summaries cannot be written to %s: %s. The run goes on, and what it computes is returned, but "
                "summaries are dropped until writing works again. Make room on the disk, make the directory writable, "
                "or use another one.",
                *(self._path or self._logdir, error),
            )

    def _opened(self, now: float) -> BinaryIO | GrowingObject:
        """The open file: another one if the directory was removed, and the file with it."""
        if self._file is not None and now - self._checked >= _CHECK_SECS:
            self._checked = now
            if not in_bucket(self._path) and find_file(self._path) is None:
                self.close()
        if self._is_released:
            self._is_released = False
            with contextlib.suppress(FileNotFoundError):
                self._file = open_to_append(self._path)
        if self._file is None:
            self._path = ""
            make_directory(self._logdir)
            # TensorBoard recognises the file by the start of its name; sorted names are in order of time.
            name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{time.time_ns()}"
            self._path = join(self._logdir, name)
            self._file = open_to_write(self._path)
            write_record(self._file, protos.event(file_version="brain.Event:2").SerializeToString())
        return self._file
