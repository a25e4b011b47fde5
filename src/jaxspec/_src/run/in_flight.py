"""The dispatches of a training whose outputs have not been fetched, and what becomes of these outputs."""

import collections
import dataclasses
import functools
import logging
from collections.abc import Sequence

import jax
import numpy as np

from jaxspec._src.device.program import MAX_IN_FLIGHT
from jaxspec._src.device.shards import fetch_step, specs_of_steps
from jaxspec._src.run.dispatch_length import DispatchLength
from jaxspec._src.run.engine import Engine
from jaxspec._src.run.host_queue import CLOSE_SECS, HostQueue
from jaxspec._src.run.nan_losses import NanLosses
from jaxspec._src.run.signals import StopRequest
from jaxspec._src.run.step_outputs import StepOutputs
from jaxspec._src.run.training_report import TrainingReport
from jaxspec._src.spec.host_functions import call_host_function
from jaxspec._src.spec.tpu_estimator_spec import TPUEstimatorSpec, replaced
from jaxspec._src.summary.context import run_position
from jaxspec._src.summary.writer import SummaryWriter

_logger = logging.getLogger("jaxspec")
_FIRST_HOST_CALLS_SECS = 0.5
"""How long the host calls of a run's first dispatch are waited for, to see whether they read the state."""


@dataclasses.dataclass(frozen=True)
class Dispatch:
    """Steps that were dispatched together."""

    first_step: int
    spec: TPUEstimatorSpec
    """On the devices, as `Program` returns it."""
    start: int
    stop: int
    """The steps are entries `start` to `stop - 1` of the leaves."""
    began: float
    """When it was dispatched, by the clock of `DispatchLength`."""

    @property
    def end(self) -> int:
        """The global step after the last one."""
        return self.first_step + self.stop - self.start


class InFlight:
    """Looks at the outputs of each dispatch in order: checks its losses, runs its host calls, reports it.

    Args:
      engine: of the estimator. Its live state is discarded after a NaN loss and after an error of a device.
      shard: the spec of one shard as it leaves the device, with shapes for leaves.
      report: logs, writes summaries, moves the progress bar.
      writer: the run's own summary writer.
      interrupt: set by a signal.
      first_step: the global step at which the run begins.
    """

    def __init__(
        self,
        engine: Engine,
        shard: TPUEstimatorSpec,
        report: TrainingReport,
        writer: SummaryWriter,
        interrupt: StopRequest,
        first_step: int,
    ) -> None:
        self._live_state, self._shard, self._report, self._writer = engine.live_state, shard, report, writer
        self._interrupt, self._first_step = interrupt, first_step
        # 0: host_call never runs.
        every = engine.tpu_config.experimental_host_call_every_n_steps
        self._host_call_every = every if shard.host_call is not None else 0
        run_ahead = engine.use_tpu  # else each dispatch is looked at, and its host calls run, before the next one
        self._most = MAX_IN_FLIGHT - 1 if run_ahead else 0
        self._host = HostQueue(threaded=run_ahead, give_up=self._gives_up_host_calls)
        self._dispatches: collections.deque[Dispatch] = collections.deque()
        self._loop_ends: collections.deque[int] = collections.deque()
        self._losses = NanLosses(fail=engine.config.fail_on_nan_loss)
        self._seen_step = first_step
        self._in_step_seen = self._gave_up = False
        self.pace = DispatchLength()
        self.last: StepOutputs | None = None
        """The outputs of the last step that was dispatched."""
        self.loss: float | None = None
        """Of the last step that was looked at."""

    def __bool__(self) -> bool:
        """Whether there is a dispatch to look at."""
        return bool(self._dispatches)

    def add(self, dispatch: Dispatch) -> None:
        """Adds a dispatch; `look_at_surplus` bounds how many there are."""
        self._dispatches.append(dispatch)
        self.last = StepOutputs(dispatch.spec, self._shard, functools.partial(fetch_step, index=dispatch.stop - 1))

    def look_at_surplus(self) -> None:
        """Looks at dispatches until no more are in flight than keep the devices busy."""
        while len(self._dispatches) > self._most:
            self.look_at_first()

    def look_at_ready(self) -> None:
        """Looks at the dispatches that are done, waiting for none."""
        while self._dispatches and _is_ready(self._dispatches[0].spec.loss):
            self.look_at_first()

    def drain(self, *, wait: bool = True) -> None:
        """Looks at all dispatches."""
        while self._dispatches:
            self.look_at_first(wait=wait)

    def look_at_first(self, *, wait: bool = True) -> None:
        """Fetches the outputs of the first dispatch, waiting for it: losses, and host_call's tensors if it is to run.

        Args:
          wait: whether to wait when too many host calls wait.
        """
        dispatch = self._dispatches[0]
        if self._losses.error is not None:
            self._dispatches.popleft()  # steps after a NaN are not reported
            return
        steps = self._host_call_steps(dispatch)
        try:
            spec = jax.device_get(dispatch.spec if steps else replaced(dispatch.spec, host_call=None))
        except Exception:
            self._live_state.discard()  # what went wrong on the device has gone into the state
            raise
        self.pace.done(dispatch.stop - dispatch.start, dispatch.began)
        losses = self._losses.check(dispatch.first_step, spec.loss[dispatch.start : dispatch.stop])
        # Not earlier: an interrupt before this point must not let the losses go unseen.
        self._dispatches.popleft()
        if not self._host_call_every:
            self._report.write_losses(dispatch.first_step, losses)
        elif not self._host.failed:
            wanted = [step for step in steps if step < dispatch.first_step + len(losses)]
            with self._interrupt.doing("host_call"):
                self._host.put(functools.partial(self._run_host_calls, dispatch, spec, wanted, losses), wait=wait)
        self.loss = float(losses[-1])
        self._seen_step = dispatch.first_step + len(losses)
        self._report.show_progress(self._seen_step, self.loss)
        self._report_loops()

    def loop_ended(self, step: int) -> None:
        """Reports the loop before the global step `step` once all its steps were looked at."""
        self._loop_ends.append(step)
        self._report_loops()

    def _report_loops(self) -> None:
        while self._loop_ends and self._loop_ends[0] <= self._seen_step:
            assert self.loss is not None
            self._report.log_loop(self._loop_ends.popleft(), self.loss)

    def _host_call_steps(self, dispatch: Dispatch) -> list[int]:
        every = self._host_call_every
        return [step for step in range(dispatch.first_step, dispatch.end) if step % every == 0] if every else []

    def _run_host_calls(
        self, dispatch: Dispatch, spec: TPUEstimatorSpec, steps: Sequence[int], losses: np.ndarray
    ) -> None:
        """The host calls of one dispatch. Runs in the thread of the host queue."""
        for step in steps:
            index = dispatch.start + step - dispatch.first_step
            host_call = next(specs_of_steps(spec, index, index + 1)).host_call
            assert host_call is not None
            try:
                with run_position(step, self._writer):
                    call_host_function("host_call", host_call)
            except BaseException as error:
                error.add_note(f"in training, at global step {step}")
                raise
        self._report.write_losses(dispatch.first_step, losses)

    @property
    def runs_host_calls(self) -> bool:
        """Whether there is a host_call to wait for."""
        return self._host_call_every > 0

    def finish_host_calls(self) -> None:
        """Waits until host_call has run for every step so far."""
        self.drain()
        with self._interrupt.doing("host_call"):
            self._host.join()

    def finish_steps(self) -> None:
        """Waits until every step so far is done, and host_call has run for it; raises if a loss was NaN."""
        self.finish_host_calls()
        self.raise_if_diverged()

    def raise_if_diverged(self) -> None:
        """Raises if a loss was NaN. The state is discarded then: the next call starts from the latest checkpoint."""
        if self._losses.error is not None:
            self._live_state.discard()
            raise self._losses.error

    def keep_host_calls_in_step(self, step: int) -> None:
        """Waits for the host calls so far where host_call reads the state: it shall find that of its own dispatch.

        Whether it does shows in the first dispatch, which is therefore waited for a moment in any case.
        """
        if not self._host_call_every or step == self._first_step:
            return
        if not self._in_step_seen:
            self._in_step_seen = True
            self.drain()
            self._host.join(_FIRST_HOST_CALLS_SECS)
        if self._live_state.was_read_by(self._host.thread):
            self.finish_host_calls()

    def finish_in_haste(self) -> None:
        """As `finish_steps`, waiting for host calls no longer than the signal allows."""
        self.drain(wait=False)
        if not self._host.failed:
            self._host.join()
        self.raise_if_diverged()

    def settle(self, error: BaseException) -> None:
        """Looks at what was dispatched before `error`: those steps have happened, and the state may be used again."""
        try:
            while self._dispatches and self._live_state.state is not None:
                self.look_at_first()
            if not self._host.failed:
                self._host.join()
            if self._losses.error is not error:
                self.raise_if_diverged()
        except Exception as another:  # the first error is the one to raise
            error.add_note(f"and then: {type(another).__name__}: {another}")

    def close(self) -> None:
        """Ends the thread of the host calls; what a signal leaves of the time bounds the wait."""
        left = self._interrupt.seconds_left
        self._host.close(CLOSE_SECS if left is None else left)

    def log_nan_losses(self, steps: int) -> None:
        """Logs how many of the `steps` steps of the run had a NaN loss, if any."""
        self._losses.warn_of_count(steps)

    def _gives_up_host_calls(self) -> bool:
        """Whether the time that a signal leaves is up: from then on no host call is waited for."""
        if self._interrupt.seconds_left == 0.0 and not self._gave_up:
            self._gave_up = True
            _logger.warning("host_call is still busy; the checkpoint is written without waiting for it.")
        return self._gave_up


def _is_ready(array: object) -> bool:
    is_ready = getattr(array, "is_ready", None)  # NumPy's have none
    return is_ready is None or bool(is_ready())
