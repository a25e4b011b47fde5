"""What a training run tells about itself: log lines, automatic summaries, the progress bar."""

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from jaxspec._src.hooks.rates import record_rate
from jaxspec._src.hooks.timer import LoopTimer
from jaxspec._src.summary.writer import SummaryWriter

if TYPE_CHECKING:
    from jaxspec._src.run.progress import ProgressBar

_logger = logging.getLogger("jaxspec")


class TrainingClock:
    """The seconds that training takes: it stands still while the thread that made it evaluates or predicts.

    What other threads do meanwhile takes nothing from training, and changes nothing.

    Args:
      clock: seconds since some start.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._thread = clock, threading.get_ident()
        self._away, self._stopped_at, self._depth = 0.0, 0.0, 0

    def __call__(self) -> float:
        """Seconds since some start. It never goes back."""
        return (self._stopped_at if self._depth else self._clock()) - self._away

    def stopped(self) -> Self:
        """A context within which the clock stands still; another one inside it changes nothing."""
        return self

    # Not a generator of contextlib: predict enters it for every example.
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


class TrainingReport:
    """Made of the losses that come back from the devices anyway: nothing waits for it.

    Args:
      step: the global step at which the run begins.
      writer: of the run's event files.
      log_every: steps between two log lines and rates; None: none.
      summary_every: steps between two summaries of the loss; None or 0: no automatic summaries at all.
      rows_per_step: examples in a global batch; None: unknown.
      bar: the progress bar, or None.
      clock: seconds since some start.
    """

    def __init__(
        self,
        *,
        step: int,
        writer: SummaryWriter,
        log_every: float | None,
        summary_every: int | None,
        rows_per_step: int | None,
        bar: "ProgressBar | None",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._writer, self._rows, self._bar = writer, rows_per_step, bar
        self._log_timer = _timer(log_every, step, clock)
        self._summary_timer = _timer(summary_every, step, clock)

    def steps(self, first: int, losses: Any) -> None:
        """Writes the loss of those steps that are due; after the host calls of these steps.

        Args:
          first: the global step of the first of `losses`, counted from 0.
        """
        timer, end = self._summary_timer, first + len(losses)
        if timer is None or not timer.should_trigger_for_step(end):
            return
        due = timer.due_steps(end)
        timer.update_last_triggered_step(end)
        if "loss" not in self._writer.user_tags:
            for step in due:
                self._writer.scalar("loss", float(losses[step - 1 - first]), step)

    def progress(self, step: int, loss: float) -> None:
        """Shows that `step` updates are done."""
        if self._bar is not None:
            self._bar.show(step, loss)

    def loop(self, step: int, loss: float) -> None:
        """Logs the loss and the rates at the end of a loop, if due: `step` updates are done."""
        timer = self._log_timer
        if timer is None or not timer.should_trigger_for_step(step):
            return
        seconds, steps = timer.update_last_triggered_step(step)
        took = "" if seconds is None else f" ({seconds:.3f} sec)"
        _logger.info("loss = %.6g, step = %d%s", loss, step, took)
        # The first interval, which compiles, is left out.
        if seconds and steps:
            writer = None if self._summary_timer is None else self._writer
            record_rate(writer, "global_step/sec", steps / seconds, step)
            if self._rows is not None:
                record_rate(writer, "examples/sec", self._rows * steps / seconds, step)


def _timer(every: float | None, step: int, clock: Callable[[], float]) -> LoopTimer | None:
    if not every:
        return None
    timer = LoopTimer(every_steps=max(1, int(every)), clock=clock)
    timer.start(step)
    return timer
