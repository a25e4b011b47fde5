"""Ctrl-C and SIGTERM, put off to the end of a loop."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


class StopRequest:
    """Set by the first signal; read between two loops."""

    signum: int | None = None


@contextlib.contextmanager
def signals_put_off() -> Iterator[StopRequest]:
    """Within it the first SIGINT or SIGTERM only sets the request; a second one acts as usual.

    Leaving the block without an error, the signal is raised again, so that the caller's own handling happens. In a
    thread other than the main one, signals are left alone.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before: dict[int, Any] = {}

    def note(signum: int, frame: FrameType | None) -> None:
        request.signum = signum
        restore()

    def restore() -> None:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        before.clear()

    for signum in (signal.SIGINT, signal.SIGTERM):
        handler = signal.getsignal(signum)
        # None: not installed from Python, and could not be put back. One that is ignored stays ignored.
        if handler not in (None, signal.SIG_IGN):
            before[signum] = signal.signal(signum, note)
    try:
        yield request
    finally:
        restore()
    if request.signum is not None:
        signal.raise_signal(request.signum)
