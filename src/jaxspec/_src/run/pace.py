"""How many steps one dispatch may have."""

import collections
import time
from collections.abc import Callable

DISPATCH_SECS = 1.0
"""How long it may take from a dispatch to its end, the one in flight before it included: what a signal waits for."""
_SAMPLES = 3


class Pace:
    """Bounds the steps of a dispatch by the time that those before it took. Results do not depend on it.

    Every sample is an upper bound of the time of a step: it holds the wait for the dispatch before, and may hold the
    compilation and the time until the host looked. The least of the last few counts.

    Args:
      clock: seconds since some start.
      seconds: how long it may take from a dispatch to its end.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, seconds: float = DISPATCH_SECS) -> None:
        self.clock = clock
        self._seconds = seconds
        self._samples: collections.deque[float] = collections.deque(maxlen=_SAMPLES)

    @property
    def most(self) -> int:
        """The most steps of the next dispatch: one, until something is known."""
        return max(1, int(self._seconds / max(min(self._samples), 1e-9))) if self._samples else 1

    def done(self, steps: int, began: float) -> None:
        """Learns from a dispatch of so many steps, begun at `began`, that is done."""
        self._samples.append((self.clock() - began) / steps)
