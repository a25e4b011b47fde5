"""Limits one dispatch to about a second, so that signals are answered. A loop may have several dispatches."""

import collections
import time

from jaxspec._src.base.types import Clock

DISPATCH_SECS = 1.0
"""The longest time from a dispatch to its end, including the dispatch in flight before it: a signal waits that long."""
_SAMPLES = 3


class DispatchLength:
    """Bounds the steps of a dispatch by the time that earlier dispatches took. Results do not depend on it.

    Each sample is an upper bound of the time of one step: it includes the wait for the dispatch before it, and may
    include compilation and the time until the host looked. The smallest of the last three counts.

    Args:
      clock: seconds since some start.
      seconds: the longest time from a dispatch to its end.
    """

    def __init__(self, clock: Clock = time.monotonic, seconds: float = DISPATCH_SECS) -> None:
        self.clock = clock
        self._seconds = seconds
        self._samples: collections.deque[float] = collections.deque(maxlen=_SAMPLES)

    @property
    def most(self) -> int:
        """The most steps that the next dispatch may have; 1 before the first one is done."""
        return max(1, int(self._seconds / max(min(self._samples), 1e-9))) if self._samples else 1

    def done(self, steps: int, began: float) -> None:
        """Records that a dispatch of `steps` steps, begun at `began` by `clock`, is done."""
        self._samples.append((self.clock() - began) / steps)
