"""What a run is busy with at the moment, by name, for the messages of a signal and of the watchdog."""

import contextlib
import contextvars
import time
from collections.abc import Iterator

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


CURRENT: contextvars.ContextVar[Activities | None] = contextvars.ContextVar("jaxspec_activities", default=None)
"""Those of the run within which the reader is called."""


def doing(what: str, *, progress: bool = True) -> contextlib.AbstractContextManager[None]:
    """Within it, this activity of the current run is under way. Nothing happens outside of a run.

    Args:
      what: the activity, as in "training waits for the input".
      progress: whether its beginning and its end show that the run makes progress: not so where it repeats while the
        run waits for something else.
    """
    activities = CURRENT.get()
    return contextlib.nullcontext() if activities is None else activities.doing(what, progress=progress)
