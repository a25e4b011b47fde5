"""EarlyStoppingHook: when a rule of early stopping is applied, and what happens then."""

import logging
from collections.abc import Callable
from typing import TypeAlias

from jaxspec._src.base.types import Clock
from jaxspec._src.base.validate import check_number
from jaxspec._src.hooks.session import Session
from jaxspec._src.hooks.timer import LoopTimer
from jaxspec._src.spec.hook import SessionRunContext, SessionRunHook, SessionRunValues

_logger = logging.getLogger("jaxspec")

Reason: TypeAlias = Callable[[Session, int], str | None]
"""Gives the reason to stop at a global step of a session; None to continue."""


class AlignedTimer(LoopTimer):
    """A loop timer whose due steps are 1, 1 + every_steps, ... of the whole run, wherever a session begins.

    Args:
      every_secs, every_steps: exactly one of them.
      clock: seconds since some start.
    """

    def __init__(self, every_secs: float | None, every_steps: int | None, clock: Clock) -> None:
        if every_secs is not None and every_steps is not None:
            raise ValueError(
                f"Only one of `run_every_secs` and `run_every_steps` must be set. Got {every_secs!r} seconds and {every_steps!r} "
                "steps; to count steps, pass run_every_secs=None."
            )
        check_number("run_every_steps", every_steps, above=0, whole=True, instead="1 looks after every loop.")
        super().__init__(every_secs, every_steps, clock=clock)

    def start(self, step: int) -> None:
        every = self._every_steps or 1
        super().start(-(-step // every) * every)

    def next_due(self, step: int) -> int | None:
        """The first due step after `step`; None for a timer of seconds."""
        return None if self._every_steps is None else self.last_due(step + self._every_steps)

    def last_due(self, step: int) -> int:
        """The last due step up to `step`, for a timer of seconds `step` itself; at most 0 if there is none."""
        return step - (step - 1) % (self._every_steps or 1) if step > 0 else 0


class EarlyStoppingHook(SessionRunHook):
    """Ends training when there is a reason to stop.

    Args:
      reason: gives the reason to stop.
      timer: when to call `reason`.
      is_of_past: whether `reason` also knows the reason there was at an earlier step. A session that continues a run which
        has stopped ends before its first step then.
    """

    after_host_calls = False

    def __init__(self, reason: Reason, timer: AlignedTimer, *, is_of_past: bool = True) -> None:
        self._reason, self._timer, self._is_of_past = reason, timer, is_of_past

    def after_create_session(self, session: Session, coord: None) -> None:
        self._timer.start(session.global_step)
        self._at_start = self._is_of_past

    def before_run(self, run_context: SessionRunContext) -> None:
        at_start, self._at_start = self._at_start, False
        # A run that has stopped here had its reason at the last step that was due.
        step = self._timer.last_due(run_context.first_step)
        if at_start and step > 0 and self._stops(run_context.session, step):
            raise StopIteration

    def next_step(self, global_step: int) -> int | None:
        return self._timer.next_due(global_step)

    def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        step = run_context.session.global_step
        if self._timer.should_trigger_for_step(step):
            self._timer.update_last_triggered_step(step)
            if self._stops(run_context.session, step):
                run_context.request_stop()

    def _stops(self, session: Session, step: int) -> bool:
        reason = self._reason(session, step)
        if reason is not None:
            _logger.info("Requesting early stopping at global step %d: %s.", session.global_step, reason)
        return reason is not None
