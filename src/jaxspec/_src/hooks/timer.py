"""Timers: whether something that happens every so many steps or seconds is due."""

import functools
import time
import weakref

from jaxspec._src.base.types import Clock
from jaxspec._src.base.validate import check_number
from jaxspec._src.hooks.session import Session
from jaxspec._src.spec.hook import SessionRunContext


class SecondOrStepTimer:
    """Triggers at its first step, and then every `every_steps` steps or `every_secs` seconds after the last trigger.

    Args:
      every_secs, every_steps: exactly one of them.
      clock: seconds since some start.

    Raises:
      ValueError: for both or neither.
    """

    def __init__(
        self,
        every_secs: float | None = None,
        every_steps: int | None = None,
        *,
        clock: Clock = time.monotonic,
    ) -> None:
        check_one_of(every_secs, every_steps)
        self._every_secs, self._every_steps, self.clock = every_secs, every_steps, clock
        self.reset()

    def reset(self) -> None:
        """Forgets the last trigger."""
        self._last: tuple[int, float] | None = None  # global step, time

    def should_trigger_for_step(self, step: int) -> bool:
        """Whether something is due at a global step. Never twice at the same step."""
        if self._last is None:
            return True
        last_step, last_time = self._last
        if self._every_secs is not None:
            return step != last_step and self.clock() >= last_time + self._every_secs
        assert self._every_steps is not None
        return step >= last_step + self._every_steps

    def update_last_triggered_step(self, step: int) -> tuple[float | None, int | None]:
        """Records a trigger at a global step; returns (seconds, steps) since the one before, (None, None) at the
        first."""
        last, self._last = self._last, (step, self.clock())
        return (None, None) if last is None else (self._last[1] - last[1], step - last[0])

    def last_triggered_step(self) -> int | None:
        """The global step of the last trigger."""
        return None if self._last is None else self._last[0]


class LoopTimer(SecondOrStepTimer):
    """A timer for loops of several steps. It triggers at the end of the first loop that reaches a due step.

    The first update of the session is due, and every `every_steps` after it. For loops of one step this is the same as
    `SecondOrStepTimer`; longer loops keep the same rate.
    """

    def start(self, step: int) -> None:
        """Begins a session at a global step."""
        self.reset()
        self._due = step + 1

    def due_steps(self, end: int) -> range:
        """The steps due since the last trigger, up to `end`, for a timer of steps."""
        assert self._every_steps is not None
        return range(self._due, end + 1, self._every_steps)

    def should_trigger_for_step(self, step: int) -> bool:
        if self._every_steps is None:
            return super().should_trigger_for_step(step)
        return step >= self._due

    def update_last_triggered_step(self, step: int) -> tuple[float | None, int | None]:
        if self._every_steps is not None:
            self._due += len(self.due_steps(step)) * self._every_steps
        return super().update_last_triggered_step(step)


class SessionTimers:
    """A `LoopTimer` for each session that a hook is in: it may be in an evaluation while training goes on.

    Args:
      every_secs, every_steps: exactly one of them.
      names: what the hook calls them.
      clock: seconds since some start.
    """

    def __init__(self, every_secs: float | None, every_steps: int | None, names: tuple[str, str], clock: Clock) -> None:
        check_one_of(every_secs, every_steps, names)
        self._new = functools.partial(LoopTimer, every_secs, every_steps, clock=clock)
        self._timers: weakref.WeakKeyDictionary[Session, LoopTimer] = weakref.WeakKeyDictionary()

    def start(self, session: Session) -> None:
        """Makes the timer of a session. Call it in `after_create_session`."""
        timer = self._timers[session] = self._new()
        timer.start(session.first_step)

    def is_due(self, context: SessionRunContext) -> bool:
        """Whether something is due at the end of a loop."""
        return self._timers[context.session].should_trigger_for_step(context.last_step + 1)

    def triggered(self, context: SessionRunContext) -> tuple[float | None, int | None]:
        """Records a trigger at the end of a loop; returns (seconds, steps) since the one before, (None, None) at the
        first."""
        return self._timers[context.session].update_last_triggered_step(context.last_step + 1)


def check_one_of(
    every_secs: float | None, every_steps: int | None, names: tuple[str, str] = ("every_secs", "every_steps")
) -> None:
    """ValueError, in TensorFlow's words, unless exactly one is given: steps above 0, or seconds.

    Args:
      names: what the caller calls the two.
    """
    if every_secs is None and every_steps is None:
        raise ValueError("Either every_secs or every_steps should be provided. Both are None; give one number.")
    if every_secs is not None and every_steps is not None:
        raise ValueError(
            f"Can not provide both every_secs and every_steps. Got {every_secs!r} seconds and {every_steps!r} steps; "
            "leave one as None."
        )
    check_number(names[0], every_secs, minimum=0)
    check_number(names[1], every_steps, above=0, whole=True)
