"""EarlyStoppingHook: when a rule of early stopping is applied, and what happens then."""

import logging
from collections.abc import Callable

from jaxspec._src.base.types import Clock
from jaxspec._src.base.validate import check_number
from jaxspec._src.hooks.session import Session
from jaxspec._src.hooks.timer import LoopTimer
from jaxspec._src.spec.hook import SessionRunContext, SessionRunHook, SessionRunValues

_logger = logging.getLogger("jaxspec")


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
      reason: `(session, global step) -> str`: the reason to stop now; None to continue.
      timer: when to call `reason`.
      past_reason: `global step -> str`: the reason there was at an earlier step. A session that continues such a run ends
        before its first step. None: that cannot be known.
    """

    after_host_calls = False

    def __init__(
        self,
        reason: Callable[[Session, int], str | None],
        timer: AlignedTimer,
        past_reason: Callable[[int], str | None] | None = None,
    ) -> None:
        self._reason, self._timer, self._past_reason = reason, timer, past_reason

    def after_create_session(self, session: Session, coord: None) -> None:
        self._timer.start(session.global_step)
        self._at_start = True

    def before_run(self, run_context: SessionRunContext) -> None:
        if not self._at_start:
            return
        self._at_start = False
        # A run that has stopped here had its reason at the last step that was due.
        step = self._timer.last_due(run_context.first_step)
        reason = self._past_reason(step) if self._past_reason is not None and step > 0 else None
        if reason is not None:
            _log_stop(run_context.first_step, reason)
            raise StopIteration

    def next_step(self, global_step: int) -> int | None:
        return self._timer.next_due(global_step)

    def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        step = run_context.session.global_step
        if not self._timer.should_trigger_for_step(step):
            return
        self._timer.update_last_triggered_step(step)
        reason = self._reason(run_context.session, step)
        if reason is not None:
            _log_stop(step, reason)
            run_context.request_stop()


def _log_stop(step: int, reason: str) -> None:
    _logger.info("Requesting early stopping at global step %d: %s.", step, reason)
