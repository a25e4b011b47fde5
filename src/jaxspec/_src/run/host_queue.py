"""Runs host calls beside the devices: in order, in one thread, a bounded number of them waiting."""

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
CLOSE_SECS = 10.0
"""How long the job at work is waited for when a run ends with an error."""
_POLL_SECS = 0.1


class HostQueue:
    """Runs jobs in order in a thread, which starts with the first job and sees the context of the queue's maker.

    Every later `put` and `join` raises the exception of a job, as itself; the jobs after it do not run. The thread is a
    daemon, so that a job that hangs does not keep the process alive: the threads of `concurrent.futures` would.

    Args:
      threaded: False runs each job in `put`: for debugging, where a breakpoint should stop the run.
      max_waiting: `put` waits while more jobs wait.
      give_up: whether `put` and `join` should stop waiting; called every 0.1 s.
    """

    def __init__(
        self, *, threaded: bool = True, max_waiting: int = MAX_WAITING, give_up: Callable[[], bool] = lambda: False
    ) -> None:
        self._threaded, self._max_waiting, self._give_up = threaded, max_waiting, give_up
        self._jobs: collections.deque[Callable[[], None]] = collections.deque()  # the first one is at work
        self._changed = threading.Condition()
        self._closed = False
        self._error: BaseException | None = None
        run = contextvars.copy_context().run
        self._thread = threading.Thread(target=run, args=(self._work,), name="jaxspec-host", daemon=True)

    @property
    def thread(self) -> int | None:
        """The identifier of the thread; None before the first job."""
        return self._thread.ident

    @property
    def failed(self) -> bool:
        """Whether a job has failed."""
        return self._error is not None

    def put(self, job: Callable[[], None], *, wait: bool = True) -> None:
        """Adds a job, and waits until at most `max_waiting` wait. An interrupt of the waiting leaves it in the
        queue."""
        if self._threaded and self.thread is None:
            self._thread.start()  # before there is a job, or an interrupt in between would leave one that nobody runs
        self._wait(math.inf)  # raises the exception of a job before it
        with self._changed:
            self._jobs.append(job)
            self._changed.notify_all()
        if not self._threaded:
            self._run_first()
        self._wait(1 + self._max_waiting if wait else math.inf)

    def join(self, timeout: float = math.inf) -> bool:
        """Waits until every job is done, or for `timeout` seconds, or until it gives up; returns whether all are
        done."""
        return self._wait(0, timeout)

    def close(self, timeout: float = CLOSE_SECS) -> None:
        """Ends the thread after the job at work, which it waits for up to `timeout` seconds. No other job runs."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self.thread is not None:
            self._thread.join(timeout)
            if self._thread.is_alive():
                _logger.warning("host_call is still busy and cannot be interrupted; its thread is left to finish.")

    def _wait(self, most: float, timeout: float = math.inf) -> bool:
        """Waits until at most `most` jobs are in the queue; returns whether that is so."""
        end = time.monotonic() + timeout
        with self._changed:
            while not self._changed.wait_for(lambda: self.failed or len(self._jobs) <= most, _POLL_SECS):
                if self._give_up() or time.monotonic() >= end:
                    return False
            if self._error is not None:
                raise self._error
            return True

    def _work(self) -> None:
        while not self.failed:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closed)
                if self._closed:
                    return
            self._run_first()

    def _run_first(self) -> None:
        error = None
        try:
            self._jobs[0]()
        except BaseException as caught:
            error = caught
        with self._changed:
            self._error = error
            self._jobs.popleft()  # it holds the outputs of a dispatch
            self._changed.notify_all()
