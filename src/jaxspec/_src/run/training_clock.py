"""The time that training takes, without the evaluations and predictions in between."""

import threading
import time
from typing import Self

from jaxspec._src.base.types import Clock


class TrainingClock:
    """Seconds of training: the clock stands still while the thread that made it evaluates or predicts.

    Other threads do not stop it.

    Args:
      clock: seconds since some start.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock, self._thread = clock, threading.get_ident()
        self._away, self._stopped_at, self._depth = 0.0, 0.0, 0

    def __call__(self) -> float:
        """Seconds since some start. They never decrease."""
        return (self._stopped_at if self._depth else self._clock()) - self._away

    def stopped(self) -> Self:
        """A context in which the clock stands still. It may be nested."""
        return self

    # Not a generator of contextlib: predict enters it for every batch.
    def __enter__(self) -> None:
        if threading.get_ident() == self._thread:
            if not self._depth:
                self._stopped_at = self._clock()
            self._depth += 1

    def __exit__(self, *_: object) -> None:
        if threading.get_ident() == self._thread:
            self._depth -= 1
            if not self._depth:
                self._away += self._clock() - self._stopped_at
