"""Dispatched training steps: fetches their outputs in order, checks the losses, queues host_call, reports."""

import collections
import dataclasses
from collections.abc import Callable

import numpy as np

from jaxspec._src.base.activities import doing
from jaxspec._src.device.program import MAX_IN_FLIGHT
from jaxspec._src.device.shards import fetch, start_fetch
from jaxspec._src.run.dispatch_length import DispatchLength
from jaxspec._src.run.engine import Engine
from jaxspec._src.run.host_calls import HostCalls
from jaxspec._src.run.nan_losses import NanLosses
from jaxspec._src.run.training_report import TrainingReport
from jaxspec._src.spec.fetches import without_fetches
from jaxspec._src.spec.tpu_estimator_spec import TPUEstimatorSpec, replaced


@dataclasses.dataclass(frozen=True)
class Dispatch:
    """Steps that were dispatched together."""

    first_step: int
    spec: TPUEstimatorSpec
    """On the devices, as `Program` returns it."""
    count: int
    """The steps are the first `count` entries of the leaves."""
    began: float
    """When it was dispatched, by the clock of `DispatchLength`."""
    done: Callable[[object], None]
    """To be called with the outputs once they have been fetched, as `Slice.finish`."""


class InFlight:
    """Looks at the outputs of each dispatch in order: checks its losses, has its host calls run, reports it.

    Args:
      engine: of the estimator. Its live state is discarded after a NaN loss and after an error of a device.
      host_calls: of the run.
      report: logs, writes summaries, moves the progress bar.
      first_step: the global step at which the run begins.
    """

    def __init__(self, engine: Engine, host_calls: HostCalls, report: TrainingReport, first_step: int) -> None:
        self._live_state, self._report, self.host_calls = engine.live_state, report, host_calls
        self._devices = engine.devices
        self._most = MAX_IN_FLIGHT - 1 if engine.use_tpu else 0  # 0: each is looked at before the next one
        self._dispatches: collections.deque[Dispatch] = collections.deque()
        self._loop_ends: collections.deque[int] = collections.deque()
        self._seen_step = first_step
        self.losses = NanLosses(fail=engine.config.fail_on_nan_loss)
        self.pace = DispatchLength()
        self.loss: float | None = None
        """Of the last step that was looked at."""

    def __bool__(self) -> bool:
        """Whether there is a dispatch to look at."""
        return bool(self._dispatches)

    def add(self, dispatch: Dispatch) -> None:
        """Adds a dispatch, and starts to fetch what is needed of it; `look_at_surplus` bounds how many there are."""
        is_due = self.host_calls.due_steps(dispatch.first_step, dispatch.count)
        host_call = without_fetches(dispatch.spec.host_call) if is_due else None
        if host_call is not dispatch.spec.host_call:
            dispatch = dataclasses.replace(dispatch, spec=replaced(dispatch.spec, host_call=host_call))
        start_fetch(dispatch.spec, self._devices)
        self._dispatches.append(dispatch)

    def look_at_surplus(self) -> None:
        """Looks at dispatches until no more are in flight than keep the devices busy."""
        while len(self._dispatches) > self._most:
            self.look_at_first()

    def look_at_ready(self) -> None:
        """Looks at the dispatches that are done, waiting for none."""
        # An array of NumPy has no `is_ready`.
        while self._dispatches and getattr(self._dispatches[0].spec.loss, "is_ready", lambda: True)():
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
        if self.losses.error is not None:
            self._dispatches.popleft()  # steps after a NaN are not reported
            return
        first, count = dispatch.first_step, dispatch.count
        try:
            with doing("the devices"):
                spec = fetch(dispatch.spec)
        except Exception:
            self._live_state.discard()  # what went wrong on the device has gone into the state
            raise
        dispatch.done(dispatch.spec.loss)
        self.pace.done(count, dispatch.began)
        losses = self.losses.check(first, np.asarray(spec.loss)[:count])
        # Not earlier: an interrupt before this point must not let the losses go unseen.
        self._dispatches.popleft()
        self.host_calls.put(spec, first, losses, wait=wait)
        self.loss = float(losses[-1])
        self._seen_step = first + len(losses)
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

    def finish_host_calls(self) -> None:
        """Waits until host_call has run for every step so far."""
        self.drain()
        self.host_calls.finish()

    def finish_steps(self) -> None:
        """Waits until every step so far is done, and host_call has run for it; raises if a loss was NaN."""
        self.finish_host_calls()
        self.raise_if_diverged()

    def finish_in_haste(self) -> None:
        """As `finish_steps`, waiting for host calls no longer than the signal allows."""
        self.drain(wait=False)
        if not self.host_calls.failed:
            self.host_calls.finish()
        self.raise_if_diverged()

    def raise_if_diverged(self) -> None:
        """Raises if a loss was NaN. The state is discarded then: the next call starts from the latest checkpoint."""
        if self.losses.error is not None:
            self._live_state.discard()
            raise self.losses.error

    def settle(self, error: BaseException) -> None:
        """Looks at what was dispatched before `error`: those steps have happened, and the state may be used again."""
        try:
            while self._dispatches and self._live_state.state is not None:
                self.look_at_first()
            if not self.host_calls.failed:
                self.host_calls.finish()
            if self.losses.error is not error:
                self.raise_if_diverged()
        except Exception as another:  # the first error is the one to raise
            error.add_note(f"and then: {type(another).__name__}: {another}")
