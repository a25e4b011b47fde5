"""How many steps one dispatch may have."""

import collections
import time
from collections.abc import Callable
from typing import Any

DISPATCH_SECS = 0.5
"""How long a dispatch should last at most. Two may be in flight: a signal or a due checkpoint waits for about a second."""
_SAMPLES = 3


def is_ready(array: Any) -> bool:
    """Whether an array is computed; NumPy's always are."""
    ready = getattr(array, "is_ready", None)
    return ready is None or bool(ready())


class Pace:
    """Bounds the steps of a dispatch by the time that those before it took. Results do not depend on it.

    Every sample is an upper bound of the time of a step: it may hold the compilation, or the time until the host looked.

    Args:
      clock: seconds since some start.
      seconds: how long a dispatch may last.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, seconds: float = DISPATCH_SECS) -> None:
        self.clock = clock
        self._seconds = seconds
        self._samples: collections.deque[float] = collections.deque(maxlen=_SAMPLES)
        self._last_done: float | None = None

    @property
    def most(self) -> int:
        """The most steps of the next dispatch: one, until something is known."""
        if not self._samples:
            return 1
        return max(1, int(self._seconds / max(min(self._samples), 1e-9)))

    def done(self, steps: int, began: float, *, waited: bool) -> None:
        """Learns from a dispatch that is done.

        Args:
          steps: how many it had.
          began: when it was dispatched.
          waited: whether the host waited for it, so that it is done just now; else it has been for some time.
        """
        now = self.clock()
        start = began if self._last_done is None else max(began, self._last_done)
        self._last_done = now if waited else None
        self._samples.append((now - start) / steps)
