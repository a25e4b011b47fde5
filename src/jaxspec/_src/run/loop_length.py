"""How many steps a loop has."""


def loop_length(step: int, *, iterations: int, stop: int | None, wanted: int | None) -> int:
    """How many steps the next loop has: at most `iterations`, ending at the last step and where a hook wants it."""
    return min([iterations, *(due - step for due in (stop, wanted) if due is not None)])


class LoopClock:
    """The number of steps of a loop: fixed, or so many as take a given time."""

    def __init__(self, steps: int | None, seconds: float | None) -> None:
        self._steps = steps
        self._seconds = seconds
        self._rate: float | None = None
        self._compiled = False

    @property
    def iterations(self) -> int:
        """The steps of the next loop. Where a time is asked for, the first two loops have one step."""
        if self._steps is not None:
            return self._steps
        return 1 if self._rate is None else max(1, round(float(self._seconds or 0) * self._rate))

    @property
    def timed(self) -> bool:
        """Whether loops take a given time."""
        return self._steps is None

    def is_up(self, seconds: float) -> bool:
        """Whether a loop that has taken so long must end, where loops take a given time."""
        return self._seconds is not None and seconds >= self._seconds

    def took(self, steps: int, seconds: float) -> None:
        """Learns from a loop that has ended on the devices. The first one compiles, and teaches nothing."""
        if self._compiled and seconds > 0:
            self._rate = steps / seconds
        self._compiled = True
