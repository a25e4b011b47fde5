"""The watchdog: a run that makes no progress says in a warning what it waits for."""

import concurrent.futures.thread
import contextlib
import contextvars
import itertools
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Self

from jaxspec._src.base.activities import CURRENT, Activities
from jaxspec._src.base.types import Clock

_logger = logging.getLogger("jaxspec")
_AGAIN_SECS = 60.0
"""The time between two warnings, and at most between two looks at the run."""
_FRAMES = 20
"""How many calls of a stack are shown: the innermost ones."""

_COMPILER_FILES = ("/jax/_src/compiler.py", "/jax/_src/interpreters/mlir.py")
"""The stack of a thread that compiles a program, or prepares that, goes through these."""


@contextlib.contextmanager
def watched(run: str, stall_secs: float | None) -> Iterator[None]:
    """Watches the run that is made within it; a run within another one is watched together with that.

    Args:
      run: what it is, such as "training".
      stall_secs: see `Watchdog`.
    """
    with contextlib.closing(Watchdog(run, stall_secs)) as watchdog, watchdog:
        yield


class Watchdog:
    """Logs a warning after `stall_secs` seconds in which no activity of a run began or ended, and once a minute more.

    The warning names the activity and shows the stacks of all threads. The run is watched within the `with` block,
    which may be entered again and again. Compilation counts as progress.

    Args:
      run: what is watched, such as "training".
      stall_secs: None: nothing is logged.
      clock: seconds.
      wait: waits so many seconds, and returns whether `close` was called; None: really waits.
    """

    def __init__(
        self,
        run: str,
        stall_secs: float | None,
        *,
        clock: Clock = time.monotonic,
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        self._clock, self._stall_secs = clock, stall_secs
        self._activities = Activities(run, clock)
        self._closed = threading.Event()
        self._wait = self._closed.wait if wait is None else wait
        self._thread: threading.Thread | None = None
        self._inside: contextvars.Token[Activities | None] | None = None

    # Not a generator of contextlib: predict enters it for every batch.
    def __enter__(self) -> Self:
        if CURRENT.get() is not None:
            return self  # the run around this one is watched
        self._activities.changed_at = self._clock()
        self._inside = CURRENT.set(self._activities)
        if self._thread is None and self._stall_secs is not None:
            self._thread = threading.Thread(
                target=self._watch, args=(self._stall_secs,), name="jaxspec-watchdog", daemon=True
            )
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._inside is not None:
            CURRENT.reset(self._inside)
            self._inside = None

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()
        # The thread itself may collect a generator of predict as garbage, and come here.
        if self._thread not in (None, threading.current_thread()):
            self._thread.join()

    def _watch(self, stall_secs: float) -> None:
        rest = stall_secs
        while not self._wait(min(rest, _AGAIN_SECS)):
            rest = self._look(stall_secs)

    # A function of its own: while the thread waits, nothing holds the stacks, nor the arrays in them.
    def _look(self, stall_secs: float) -> float:
        """Warns if the run makes no progress; returns in how many seconds to look again."""
        stacks = sys._current_frames()
        del stacks[threading.get_ident()]  # it holds `stacks`
        if self._inside is None or _compiles(stacks):
            self._activities.changed_at = self._clock()
        stalled = self._clock() - self._activities.changed_at
        if stalled < stall_secs:
            return stall_secs - stalled
        _logger.warning(
            "No progress for %d s: %s waits for %s. It goes on waiting. The stacks of all threads, the innermost call "
            "last:\n%s",
            *(stalled, self._activities.run, self._activities.awaited(), _describe(stacks)),
        )
        return _AGAIN_SECS


def _compiles(stacks: Mapping[int, FrameType]) -> bool:
    """Whether one of the threads compiles a program."""
    return any(
        frame.f_code.co_filename.endswith(_COMPILER_FILES)
        for innermost in stacks.values()
        for frame, _ in traceback.walk_stack(innermost)
    )


def _describe(stacks: Mapping[int, FrameType]) -> str:
    """The stacks as text, without those of threads in a pool that have nothing to do."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    lines = []
    for ident, innermost in stacks.items():
        if innermost.f_code.co_filename == concurrent.futures.thread.__file__:
            continue
        calls = traceback.extract_stack(innermost, _FRAMES)
        of_user = itertools.dropwhile(lambda call: call.filename == threading.__file__, calls)  # the start of a thread
        lines += [f"Thread {names.get(ident, ident)}:\n", *traceback.format_list(list(of_user))]
    return "".join(lines).rstrip()
