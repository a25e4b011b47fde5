"""What a run is busy with, by name: at the moment, for messages, and how long in all."""

import collections
import contextlib
import contextvars
import threading
import time
from collections.abc import Iterator, Mapping

from jaxspec._src.base.types import Clock


class Activities:
    """The activities of one run that are under way, in whichever threads.

    Args:
      run: what the run is, such as "training".
      clock: seconds.
    """

    def __init__(self, run: str, clock: Clock = time.monotonic) -> None:
        self.run, self._clock = run, clock
        self._under_way: dict[object, str] = {}
        self.changed_at = clock()
        """When there was progress last."""

    @contextlib.contextmanager
    def doing(self, what: str, *, progress: bool) -> Iterator[None]:
        """Within it, this activity is under way. See the function `doing`."""
        key = object()  # another thread may end one of the same name
        self._under_way[key] = what
        if progress:
            self.changed_at = self._clock()
        try:
            yield
        finally:
            del self._under_way[key]
            if progress:
                self.changed_at = self._clock()

    def awaited(self) -> str:
        """What the run waits for, such as "the input, in evaluation"."""
        return ", in ".join(reversed(list(self._under_way.values()))) or "the devices"


class TimeSpent:
    """Adds up the seconds that one thread spends on each activity, without those on an activity within it.

    Args:
      clock: seconds since some start.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock, self._thread = clock, threading.get_ident()
        self._seconds: dict[str, float] = collections.defaultdict(float)
        self._activity, self._since = "", clock()

    def begin(self, activity: str) -> str:
        """From now on the thread is busy with `activity`; returns the one before. Other threads change nothing."""
        before = self._activity
        if threading.get_ident() == self._thread:
            now = self._clock()
            self._seconds[before] += now - self._since
            self._activity, self._since = activity, now
        return before

    def seconds(self) -> Mapping[str, float]:
        """The seconds so far by activity; those of no activity are at ""."""
        self.begin(self._activity)
        return dict(self._seconds)


CURRENT: contextvars.ContextVar[Activities | None] = contextvars.ContextVar("jaxspec_activities", default=None)
"""Those of the run within which the reader is called."""
SPENT: contextvars.ContextVar[TimeSpent | None] = contextvars.ContextVar("jaxspec_time_spent", default=None)
"""Where the time of that run is added up, if it is."""


@contextlib.contextmanager
def doing(what: str, *, progress: bool = True) -> Iterator[None]:
    """Within it, this activity of the current run is under way. Nothing happens outside of a run.

    Args:
      what: the activity, as in "training waits for the input".
      progress: whether its beginning and its end show that the run makes progress: not so where it repeats while the
        run waits for something else.
    """
    activities, spent = CURRENT.get(), SPENT.get()
    before = "" if spent is None else spent.begin(what)
    try:
        with contextlib.nullcontext() if activities is None else activities.doing(what, progress=progress):
            yield
    finally:
        if spent is not None:
            spent.begin(before)
