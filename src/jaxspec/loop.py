"""One training session: dispatches loops of steps, looks at what comes back, saves."""

import collections
import dataclasses
import logging
import time
from collections.abc import Callable

import jax
import numpy as np

from .checkpoint import Saver
from .hooks.nan import NanLossDuringTrainingError
from .hostcall import on_host, run_host_call, steps_of
from .infeed import Batch, Infeed, Slice
from .ownership import StateOwner
from .replicate import MAX_IN_FLIGHT, Loop, first_shard
from .signals import StopRequest
from .spec import TPUEstimatorSpec
from .summary import SummaryWriter, run_position

_logger = logging.getLogger("jaxspec")


@dataclasses.dataclass
class SavePlan:
    """When checkpoints are due: every so many steps or seconds after the last one."""

    steps: int | None
    secs: float | None
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._saved_at = self.clock()
        self.next_step: int | None = None

    @property
    def enabled(self) -> bool:
        """Whether checkpoints are written at all."""
        return bool(self.steps or self.secs)

    def saved(self, step: int) -> None:
        """Notes that the checkpoint of `step` was written."""
        self._saved_at = self.clock()
        self.next_step = step + self.steps if self.steps else None

    def due(self, step: int) -> bool:
        """Whether a checkpoint is due after `step` updates."""
        if self.next_step is not None:
            return step >= self.next_step
        return bool(self.secs) and self.clock() - self._saved_at >= float(self.secs or 0)


def loop_length(step: int, *, iterations: int, stop: int | None, next_save: int | None) -> int:
    """How many steps the next loop has: at most `iterations`, ending where a checkpoint or the last step is due."""
    return min([iterations, *(due - step for due in (stop, next_save) if due is not None)])


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

    def took(self, steps: int, seconds: float) -> None:
        """Learns from a loop that has ended on the devices. The first one compiles, and teaches nothing."""
        if self._compiled and seconds > 0:
            self._rate = steps / seconds
        self._compiled = True


@dataclasses.dataclass
class _Pending:
    """A dispatch whose results have not been looked at."""

    first_step: int
    spec: TPUEstimatorSpec
    start: int
    stop: int


class TrainSession:
    """Runs the steps of one call of train.

    Args:
      owner: holds the live state.
      loop: the program.
      infeed: the batches, started.
      step: the global step of the state.
      stop_step: the global step to end at; None: at the end of the input.
      clock: how long a loop is.
      save_plan, saver: when and where checkpoints are written.
      host_call_every: host_call runs at the global steps that this divides; 0: never.
      log_every: steps between two log lines; None: none.
      writer: the run's own summary writer.
      interrupt: set by a signal.
    """

    def __init__(
        self,
        *,
        owner: StateOwner,
        loop: Loop,
        infeed: Infeed,
        step: int,
        stop_step: int | None,
        clock: LoopClock,
        save_plan: SavePlan,
        saver: Saver,
        host_call_every: int,
        log_every: int | None,
        writer: SummaryWriter,
        interrupt: StopRequest,
    ) -> None:
        self._owner, self._loop, self._infeed = owner, loop, infeed
        self._step, self._stop_step, self._clock = step, stop_step, clock
        self._save_plan, self._saver = save_plan, saver
        self._host_call_every, self._log_every = host_call_every, log_every
        self._writer, self._interrupt = writer, interrupt
        self._pending: collections.deque[_Pending] = collections.deque()
        self._host_call_failed = False
        self._logged = (step, time.monotonic())
        self.loss: float | None = None

    def run(self) -> None:
        """Trains. When it returns, the last checkpoint is written and whole."""
        try:
            self._run()
        finally:
            self._saver.wait()

    def _run(self) -> None:
        if self._save_plan.enabled:
            self._save()
        try:
            self._run_loops()
        except KeyboardInterrupt:
            # Raised by the user's code, or by a second Ctrl-C: the state is good if nothing was being dispatched.
            if self._owner.state is not None:
                self._finish()
            raise
        except Exception as error:
            self._settle(error)
            raise
        self._finish()

    def _run_loops(self) -> None:
        ended = False
        while not ended and not self._interrupted() and self._step != self._stop_step:
            length = loop_length(
                self._step,
                iterations=self._clock.iterations,
                stop=self._stop_step,
                next_save=self._save_plan.next_step,
            )
            first, began = self._step, time.monotonic()
            while not ended and self._step < first + length:
                while self._pending and not self._infeed.ready():
                    self._look_at_first()  # rather than wait idly
                item = self._infeed.take(first + length - self._step, self._interrupted)
                if item is None:
                    ended = True
                else:
                    self._dispatch(item)
            if self._clock.timed:
                self._drain()
                self._clock.took(self._step - first, time.monotonic() - began)
            if self._save_plan.due(self._step):
                self._save()

    def _interrupted(self) -> bool:
        return self._interrupt.signum is not None

    def _dispatch(self, item: Slice | Batch) -> None:
        if isinstance(item, Batch):
            # One batch of its own size, on one device: a stack of capacity one.
            item = Slice(jax.tree.map(lambda x: x[None, None], item.data), 0, 1, item.position)
        state = self._owner.take()
        state, spec = self._loop(state, item.data, item.start, item.stop)
        self._pending.append(_Pending(self._step, spec, item.start, item.stop))
        self._step += item.stop - item.start
        self._owner.put(state, item.position)
        while len(self._pending) > MAX_IN_FLIGHT - 1:
            self._look_at_first()

    def _settle(self, error: Exception) -> None:
        """Looks at what was dispatched before `error`: those steps have happened, and the state may be used again."""
        try:
            while self._pending and self._owner.state is not None:
                self._look_at_first(host_calls=not self._host_call_failed)
        except Exception as another:  # the first error is the one to raise
            error.add_note(f"and then: {type(another).__name__}: {another}")

    def _drain(self) -> None:
        while self._pending:
            self._look_at_first()

    def _look_at_first(self, *, host_calls: bool = True) -> None:
        """Fetches the outputs of the first dispatch, waiting for it: losses, then host calls in step order."""
        dispatch = self._pending[0]
        try:
            spec = jax.device_get(dispatch.spec)
        except Exception:
            self._owner.state = None  # what went wrong on the device has gone into the state
            raise
        self._refuse_nan(dispatch, spec.loss)
        # Not earlier: an interrupt before this point must not let the losses go unseen.
        self._pending.popleft()
        if host_calls and spec.host_call is not None and self._host_call_every:
            for step, one in enumerate(steps_of(spec, dispatch.start, dispatch.stop), dispatch.first_step):
                if step % self._host_call_every == 0:
                    self._host_call(step, one)
        self.loss = float(spec.loss[dispatch.stop - 1])
        self._log(dispatch.first_step, dispatch.first_step + dispatch.stop - dispatch.start)

    def _host_call(self, step: int, spec: TPUEstimatorSpec) -> None:
        try:
            with run_position(step, self._writer):
                run_host_call(on_host(spec))
        except BaseException as error:
            self._host_call_failed = True
            error.add_note(f"in training, at global step {step}")
            raise

    def _refuse_nan(self, dispatch: _Pending, losses: np.ndarray) -> None:
        bad = np.flatnonzero(np.isnan(losses[dispatch.start : dispatch.stop].astype(np.float32)))
        if bad.size:
            self._owner.state = None  # the next call starts from the latest checkpoint
            raise NanLossDuringTrainingError(
                f"NaN loss during training: at step {dispatch.first_step + int(bad[0])} (counted from 0). The latest "
                "checkpoint is from before it. Lower the learning rate, clip the gradients, or look at that batch."
            )

    def _log(self, first: int, end: int) -> None:
        every = self._log_every
        if not every or end // every == first // every:
            return
        (before, since), now = self._logged, time.monotonic()
        rate = f" ({(end - before) / (now - since):.1f} steps/s)" if now > since and before != end else ""
        _logger.info("loss = %.6g, step = %d%s", self.loss, end, rate)
        self._logged = (end, now)

    def _save(self) -> None:
        # A checkpoint waits for the losses of all steps before it: none is written behind a NaN.
        self._drain()
        try:
            self._saver.save(first_shard(self._owner.state), self._owner.position)
        except NanLossDuringTrainingError:
            self._owner.state = None
            raise
        self._save_plan.saved(self._step)

    def _finish(self) -> None:
        self._drain()
        if self._save_plan.enabled:
            self._save()
