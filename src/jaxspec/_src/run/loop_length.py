"""How many steps run between two calls of the hooks (`iterations_per_loop`)."""


class LoopLength:
    """The number of steps of a loop: fixed, or as many as take a given time.

    Args:
      steps: the fixed number; None: `seconds` decides.
      seconds: how long a loop takes.
    """

    def __init__(self, steps: int | None, seconds: float | None) -> None:
        self._steps, self._seconds = steps, seconds
        self._rate: float | None = None
        self._compiled = False

    @property
    def iterations(self) -> int:
        """The most steps of the next loop. Where the time decides, the first two loops have one step."""
        if self._steps is not None:
            return self._steps
        return 1 if self._rate is None else max(1, round(float(self._seconds or 0) * self._rate))

    def next(self, step: int, *, stop: int | None, due: int | None) -> int:
        """The steps of the loop that begins at the global step `step`.

        Args:
          stop: the global step to end at; None: there is none.
          due: the global step at which a hook wants to be called next; None: there is none.
        """
        return min([self.iterations, *(end - step for end in (stop, due) if end is not None)])

    @property
    def timed(self) -> bool:
        """Whether the time decides."""
        return self._steps is None

    def is_up(self, seconds: float) -> bool:
        """Whether a loop that has taken `seconds` must end. Never where the number of steps is fixed."""
        return self._seconds is not None and seconds >= self._seconds

    def took(self, steps: int, seconds: float) -> None:
        """Records a loop that has ended on the devices. The first one, which compiles, does not count."""
        if self._compiled and seconds > 0:
            self._rate = steps / seconds
        self._compiled = True
