"""What a training run reports while it runs: log lines with loss and rates, automatic summaries, the progress bar."""

import logging
from typing import TYPE_CHECKING

import numpy as np

from jaxspec._src.base.types import Clock
from jaxspec._src.hooks.rates import Compute, record_rates
from jaxspec._src.hooks.timer import LoopTimer
from jaxspec._src.run.config import RunConfig
from jaxspec._src.run.goodput import Goodput
from jaxspec._src.summary.writer import SummaryWriter

if TYPE_CHECKING:
    from jaxspec._src.run.progress import ProgressBar

_logger = logging.getLogger("jaxspec")


class TrainingReport:
    """Reports the losses that the run fetches from the devices anyway, so it never waits for a device.

    Args:
      step: the global step at which the run begins.
      writer: writes the event files of the run.
      config: says after how many steps to log, and to write summaries. Without summaries of the loss there are none of
        rates.
      batch_size: examples in a global batch; None: unknown.
      bar: the progress bar, or None.
      clock: seconds since some start.
      logs: whether there are log lines: of several processes, process 0 writes them.
      compute: for the FLOP/s; None: they are not known.
      goodput: looks at the time at the end of each loop; None: nobody does.
    """

    def __init__(
        self,
        *,
        step: int,
        writer: SummaryWriter,
        config: RunConfig,
        batch_size: int | None,
        bar: "ProgressBar | None",
        clock: Clock,
        logs: bool = True,
        compute: Compute | None = None,
        goodput: Goodput | None = None,
    ) -> None:
        self._writer, self._batch_size, self._bar, self._compute = writer, batch_size, bar, compute
        self._goodput = goodput
        self._log_timer = _timer(config.log_step_count_steps if logs else None, step, clock)
        self._summary_timer = _timer(config.save_summary_steps, step, clock)

    def write_losses(self, first: int, losses: np.ndarray) -> None:
        """Writes the losses whose summaries are due. Call it after the host calls of these steps.

        Args:
          first: the global step of the first of `losses`, counted from 0.
          losses: the losses of consecutive steps, on the host.
        """
        timer, end = self._summary_timer, first + len(losses)
        if timer is None or not timer.should_trigger_for_step(end):
            return
        due = timer.due_steps(end)
        timer.update_last_triggered_step(end)
        if "loss" not in self._writer.user_tags:
            for step in due:
                self._writer.scalar("loss", float(losses[step - 1 - first]), step)

    def show_progress(self, step: int, loss: float) -> None:
        """Shows on the progress bar that `step` updates are done."""
        if self._bar is not None:
            self._bar.show(step, loss, self._compute)

    def log_loop(self, step: int, loss: float) -> None:
        """Logs the loss and the rates, if they are due, at the end of a loop after which `step` updates are done."""
        if self._goodput is not None:
            self._goodput.loop_ended(step)
        timer = self._log_timer
        if timer is None or not timer.should_trigger_for_step(step):
            return
        seconds, steps = timer.update_last_triggered_step(step)
        took = "" if seconds is None else f" ({seconds:.3f} sec)"
        _logger.info("loss = %.6g, step = %d%s", loss, step, took)
        # The first interval, which compiles, is left out.
        writer = None if self._summary_timer is None else self._writer
        record_rates(writer, step, seconds, steps, self._batch_size, self._compute)


def _timer(every: float | None, step: int, clock: Clock) -> LoopTimer | None:
    if not every:
        return None
    timer = LoopTimer(every_steps=max(1, int(every)), clock=clock)
    timer.start(step)
    return timer
