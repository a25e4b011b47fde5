"""Work on the host beside the devices: in order, bounded."""

import collections
import contextvars
import logging
import math
import threading
import time
from collections.abc import Callable

_logger = logging.getLogger("jaxspec")
MAX_WAITING = 2
"""Jobs that may wait. One job has the outputs of one dispatch, so this bounds their memory."""
PATIENCE_SECS = 10.0
"""How long a job is waited for when a run ends with an error."""
_GLANCE_SECS = 0.1
"""How often one who waits asks whether to give up."""


class HostQueue:
    """Runs jobs in order in a helper thread, which starts with the first one.

    An exception of a job is raised, as itself, by every later `put` and `join`; the jobs behind it are dropped.

    Args:
      threaded: False runs each job in `put`: for debugging, where a breakpoint should stop the run.
      max_waiting: `put` waits while more jobs wait.
      give_up: whether `put` and `join` are to wait no longer; asked some times a second.
    """

    def __init__(
        self, *, threaded: bool = True, max_waiting: int = MAX_WAITING, give_up: Callable[[], bool] = lambda: False
    ) -> None:
        self._threaded, self._max_waiting, self._give_up = threaded, max_waiting, give_up
        self._jobs: collections.deque[Callable[[], None]] = collections.deque()
        self._busy = self._closed = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._context = contextvars.copy_context()
        self.failed = False
        """Whether a job has failed."""

    @property
    def thread(self) -> int | None:
        """The identifier of the helper thread; None before the first job."""
        return None if self._thread is None else self._thread.ident

    def put(self, job: Callable[[], None], *, wait: bool = True) -> None:
        """Adds a job, and waits until no more than `max_waiting` wait. It is added even if the waiting is interrupted."""
        if not self._threaded:
            try:
                job()
            except BaseException:
                self.failed = True
                raise
            return
        if self._thread is None:
            # Before there is a job: an interrupt in between must not leave one that nobody does.
            self._thread = threading.Thread(
                target=self._context.run, args=(self._work,), name="jaxspec-host", daemon=True
            )
            self._thread.start()
        with self._changed:
            self._raise()
            self._jobs.append(job)
            self._changed.notify_all()
        if wait:
            self._wait(lambda: len(self._jobs) <= self._max_waiting)

    def join(self, timeout: float = math.inf) -> bool:
        """Waits until every job is done, so many seconds have gone, or it is to give up; returns whether they are done."""
        return self._wait(lambda: not (self._jobs or self._busy), timeout)

    def _wait(self, done: Callable[[], bool], timeout: float = math.inf) -> bool:
        until = time.monotonic() + timeout
        with self._changed:
            while not self._changed.wait_for(lambda: self.failed or done(), _GLANCE_SECS):
                if self._give_up() or time.monotonic() >= until:
                    return False
            self._raise()
            return True

    def close(self, patience_secs: float = PATIENCE_SECS) -> None:
        """Drops what waits, and ends the thread after its job, which is waited for no longer than that."""
        with self._changed:
            self._closed = True
            self._jobs.clear()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout=patience_secs)
            if self._thread.is_alive():
                _logger.warning("host_call is busy still and cannot be interrupted; its thread is left to finish.")

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closed)
                if self._closed:
                    return
                job = self._jobs.popleft()
                self._busy = True
                self._changed.notify_all()
            error: BaseException | None = None
            try:
                job()
            except BaseException as caught:
                error = caught
            with self._changed:
                self._busy = False
                if error is not None:
                    self._error, self.failed = error, True
                    self._jobs.clear()
                self._changed.notify_all()
            del job  # it holds the outputs of a dispatch
            if error is not None:
                return
