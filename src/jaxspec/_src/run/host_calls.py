"""host_call in training: at which steps it runs, and in which thread. (In evaluation: run/evaluate.py.)"""

import functools
import logging
from collections.abc import Callable

import numpy as np

from jaxspec._src.base.activities import doing
from jaxspec._src.device.shards import specs_of_steps
from jaxspec._src.run.engine import Engine
from jaxspec._src.run.host_queue import CLOSE_SECS, HostQueue
from jaxspec._src.run.signals import StopRequest
from jaxspec._src.run.training_report import TrainingReport
from jaxspec._src.spec.fetches import without_fetches
from jaxspec._src.spec.host_functions import call_host_function
from jaxspec._src.spec.tpu_estimator_spec import TPUEstimatorSpec
from jaxspec._src.summary.context import run_position
from jaxspec._src.summary.writer import SummaryWriter

_logger = logging.getLogger("jaxspec")
_FIRST_HOST_CALLS_SECS = 0.5
"""How long the host calls of a run's first dispatch are waited for, to see whether they read the state."""


class HostCalls:
    """Runs host_call for the steps of a training, in order, in the thread of a `HostQueue`. False if it never runs.

    Args:
      engine: of the estimator.
      shard: the spec of one shard; it shows whether there is a host_call.
      report: writes the losses of a dispatch after its host calls.
      writer: the run's own summary writer.
      interrupt: set by a signal.
      here: whether host_call runs in this process: of several, in process 0.
    """

    def __init__(
        self,
        engine: Engine,
        shard: TPUEstimatorSpec,
        report: TrainingReport,
        writer: SummaryWriter,
        interrupt: StopRequest,
        *,
        here: bool,
    ) -> None:
        every = engine.tpu_config.experimental_host_call_every_n_steps
        self._every = every if here and without_fetches(shard.host_call) else 0
        self._live_state, self._report, self._writer, self._interrupt = engine.live_state, report, writer, interrupt
        # With use_tpu=False they run before the next dispatch.
        self._queue = HostQueue(threaded=engine.use_tpu, give_up=self._gives_up)
        self._have_begun = self._gave_up = False

    def __bool__(self) -> bool:
        return self._every > 0

    @property
    def failed(self) -> bool:
        """Whether one has failed."""
        return self._queue.failed

    def due_steps(self, first_step: int, count: int) -> list[int]:
        """Those of `count` global steps from `first_step` on for which host_call is to run."""
        every = self._every
        return [step for step in range(first_step, first_step + count) if step % every == 0] if every else []

    def put(self, spec: TPUEstimatorSpec, first_step: int, losses: np.ndarray, *, wait: bool) -> None:
        """Runs host_call for the steps of one dispatch that are due, and then reports their losses.

        Args:
          spec: the outputs of the dispatch, on the host.
          first_step: the global step of the first one.
          losses: of the steps.
          wait: whether to wait when too many dispatches wait for their host calls.
        """
        if not self:
            self._report.write_losses(first_step, losses)
        elif not self.failed:
            with doing("host_call"):
                self._queue.put(functools.partial(self._run, spec, first_step, losses), wait=wait)

    def _run(self, spec: TPUEstimatorSpec, first_step: int, losses: np.ndarray) -> None:
        """Runs in the thread of the queue."""
        # The spec is taken apart once for all steps.
        for step, of_step in enumerate(specs_of_steps(spec, len(losses)), first_step):
            if step % self._every:
                continue
            assert of_step.host_call is not None
            try:
                with run_position(step, self._writer):
                    call_host_function("host_call", of_step.host_call)
            except BaseException as error:
                error.add_note(f"in training, at global step {step}")
                raise
        self._report.write_losses(first_step, losses)

    def finish(self) -> None:
        """Waits until all have run; raises the error of one that failed."""
        with doing("host_call"):
            self._queue.join()

    def keep_in_step(self, drain: Callable[[], None]) -> None:
        """Waits for the host calls so far where host_call reads the state: it shall find that of its own dispatch.

        Whether it does shows in the first dispatch, which is therefore waited for a moment in any case.

        Args:
          drain: puts the host calls of all dispatches so far.
        """
        if not self:
            return
        if not self._have_begun:
            self._have_begun = True
            drain()
            self._queue.join(_FIRST_HOST_CALLS_SECS)
        if self._live_state.was_read_by(self._queue.thread):
            drain()
            self.finish()

    def close(self) -> None:
        """Ends the thread; what a signal leaves of the time bounds the wait."""
        left = self._interrupt.seconds_left
        self._queue.close(CLOSE_SECS if left is None else left)

    def _gives_up(self) -> bool:
        """Whether the time that a signal leaves is up: from then on no host call is waited for."""
        if self._interrupt.seconds_left == 0.0 and not self._gave_up:
            self._gave_up = True
            _logger.warning("host_call is still busy; the checkpoint is written without waiting for it.")
        return self._gave_up
