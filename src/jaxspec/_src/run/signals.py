"""Ctrl-C and SIGTERM: put off until the state is saved, heard by whatever is under way, never forgotten."""

import _thread
import contextlib
import contextvars
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TypeAlias

from jaxspec._src.base.activities import CURRENT, Activities
from jaxspec._src.base.errors import Interrupted
from jaxspec._src.device.joining import leave_processes

_logger = logging.getLogger("jaxspec")
PATIENCE_SECS = 8.0
"""How long a run that a signal ends waits for host_call and input_fn, all in all: the process ends within 10 s."""
_SECOND_PATIENCE_SECS = 2.0
"""What a second Ctrl-C leaves of it at least."""


Handler: TypeAlias = Callable[[int, FrameType | None], object] | int | signal.Handlers | None
"""What `signal.getsignal` returns."""


class StopRequest:
    """Set by the first signal; read between two dispatches.

    Args:
      activities: of the training, for the line that answers the signal.
    """

    def __init__(self, activities: Activities | None = None) -> None:
        self._activities = activities
        self.signum: int | None = None
        self._deadline: float | None = None
        self._awaited = ""
        self._told = threading.Event()
        self._teller = threading.Thread(target=self._tell, daemon=True)
        self._shields = 0
        self._kept: Callable[[], object] | None = None

    def hurry(self) -> None:
        """Lets the time run that there is to end; called again, it leaves a little of it at least."""
        if self._deadline is None:
            self._deadline = time.monotonic() + PATIENCE_SECS
        else:
            self._deadline = max(self._deadline, time.monotonic() + min(_SECOND_PATIENCE_SECS, PATIENCE_SECS))

    @property
    def seconds_left(self) -> float | None:
        """How long host_call and input_fn may still be waited for; None: as long as they take."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    @contextlib.contextmanager
    def shield(self) -> Iterator[None]:
        """Within it a second Ctrl-C is kept until the block ends, which must not be left half done."""
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1
            if not self._shields and self._kept is not None:
                kept, self._kept = self._kept, None
                kept()

    def act(self, action: Callable[[], object]) -> None:
        """Does what a later signal does, or keeps it while there is a shield."""
        if self._shields:
            self._kept = action
        else:
            action()

    def heard(self, signum: int) -> None:
        """Sets the request. Called in a signal handler: it takes no lock, and the line is written by a thread."""
        self.signum = signum
        self.hurry()
        self._awaited = "the devices" if self._activities is None else self._activities.awaited()
        # Starting a thread of `threading` takes locks, and logging in any other would leave an entry in its list.
        _thread.start_new_thread(self._teller.start, ())

    def _tell(self) -> None:
        assert self.signum is not None
        try:
            _logger.warning(
                "%s: training ends and is saved; now waiting for %s. Another signal does not wait for it.",
                *(signal.Signals(self.signum).name, self._awaited),
            )
        finally:
            self._told.set()

    def wait_until_told(self) -> None:
        """Waits a moment for the line that says that the signal was heard."""
        if self._told.wait(1):
            self._teller.join(1)


_request: contextvars.ContextVar[StopRequest | None] = contextvars.ContextVar("jaxspec_stop_request", default=None)


def interrupted() -> bool:
    """Whether a signal ends the training within which this is called. Costs nothing."""
    request = _request.get()
    return request is not None and request.signum is not None


def raise_if_interrupted() -> None:
    """Raises `Interrupted` if a signal ends the training within which this is called."""
    if interrupted():
        raise Interrupted("a signal ends the training within which this was called")


@contextlib.contextmanager
def signals_put_off() -> Iterator[StopRequest]:
    """Within it the first SIGINT or SIGTERM only sets the request; others act as usual, when no shield is up.

    Leaving the block, the signal is raised again, so that the caller's own handling happens: also after an error, which
    gets a note then. In a thread other than the main one, signals are left alone.
    """
    request = StopRequest(CURRENT.get())
    token = _request.set(request)
    before: dict[int, Handler] = {}
    is_main_thread = threading.current_thread() is threading.main_thread()

    def note(signum: int, frame: FrameType | None) -> None:
        if request.signum is None:
            request.heard(signum)
            return
        handler = before[signum]
        if callable(handler):
            request.act(lambda: handler(signum, frame))
        else:  # the process ends: whatever is half done is not seen by the next one
            signal.signal(signum, handler)
            signal.raise_signal(signum)

    try:
        with contextlib.ExitStack() as installed:
            for signum in (signal.SIGINT, signal.SIGTERM) if is_main_thread else ():
                handler = signal.getsignal(signum)
                # None: not installed from Python, and could not be put back. One that is ignored stays ignored.
                if handler not in (None, signal.SIG_IGN):
                    before[signum] = signal.signal(signum, note)
                    installed.callback(signal.signal, signum, before[signum])
            yield request
    except BaseException as error:
        if request.signum is not None:
            _act_after_error(request, request.signum, error)
        raise
    finally:
        _request.reset(token)
    if request.signum is not None:
        request.wait_until_told()
        _raise(request.signum)


def _act_after_error(request: StopRequest, signum: int, error: BaseException) -> None:
    """Lets the signal act although an error has come after it: a caller that catches the error must not go on."""
    request.wait_until_told()
    handler = signal.getsignal(signum)
    if isinstance(error, KeyboardInterrupt) and handler is signal.default_int_handler:
        return  # what the signal does has happened
    name = signal.Signals(signum).name
    error.add_note(f"{name} had come before this error; it acts now")
    if handler is signal.SIG_DFL:
        _logger.error("%s ends the process. An error came after it:", name, exc_info=error)
    _raise(signum)


def _raise(signum: int) -> None:
    if signal.getsignal(signum) is signal.SIG_DFL:
        leave_processes()
    signal.raise_signal(signum)
