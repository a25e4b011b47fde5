"""One training session: dispatches loops of steps, looks at what comes back, calls the hooks."""

import collections
import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxspec._src.base.errors import NanLossDuringTrainingError
from jaxspec._src.checkpoint.saver import Saver
from jaxspec._src.checkpoint.store import state_arrays
from jaxspec._src.data.batch import Batch
from jaxspec._src.data.prefetch import Infeed
from jaxspec._src.data.stacks import SingleBatches, Slice
from jaxspec._src.device.gather import concatenate_shards, first_shard, steps_of
from jaxspec._src.device.live_state import StateOwner
from jaxspec._src.device.program import MAX_IN_FLIGHT, Program
from jaxspec._src.hooks.session import TrainingSession
from jaxspec._src.run.dispatch_length import DispatchLength
from jaxspec._src.run.hook_calls import HookCalls, SessionStopped
from jaxspec._src.run.host_calls import on_host, run_host_call
from jaxspec._src.run.host_queue import CLOSE_SECS, HostQueue
from jaxspec._src.run.loop_length import LoopLength
from jaxspec._src.run.nan_losses import NanLosses
from jaxspec._src.run.signals import Interrupted, StopRequest
from jaxspec._src.run.step_outputs import StepOutputs
from jaxspec._src.run.training_report import TrainingReport
from jaxspec._src.spec.fetch_names import fetch_names
from jaxspec._src.spec.hook import SessionRunContext
from jaxspec._src.spec.tpu_estimator_spec import TPUEstimatorSpec, replaced
from jaxspec._src.summary.context import run_position
from jaxspec._src.summary.writer import SummaryWriter

_logger = logging.getLogger("jaxspec")
_FIRST_HOST_CALLS_SECS = 0.5
"""How long the host calls of a run's first dispatch are waited for, to see whether they read the state."""


@dataclasses.dataclass
class _Pending:
    """A dispatch whose results have not been looked at."""

    first_step: int
    spec: TPUEstimatorSpec
    start: int
    stop: int
    began: float
    """When it was dispatched, by the clock of `DispatchLength`."""


class TrainingRun:
    """Runs the steps of one call of train.

    Args:
      owner: holds the live state.
      loop: the program.
      shard: the spec of one shard as it leaves the device, with shapes for leaves.
      infeed: the batches, started.
      hooks: with `begin` called; the checkpoint savers are among them.
      step: the global step of the state.
      stop_step: the global step to end at; None: at the end of the input.
      clock: how long a loop is.
      savers: by the directories that the hooks save to: an interrupted run saves there, too.
      host_call_every: host_call runs at the global steps that this divides; 0: never.
      run_ahead: False looks at the outputs of each dispatch, and runs its host calls, before the next one.
      report: tells about the run.
      writer: the run's own summary writer.
      interrupt: set by a signal.
      fail_on_nan_loss: whether a NaN loss ends the run.
    """

    def __init__(
        self,
        *,
        owner: StateOwner,
        loop: Program,
        shard: TPUEstimatorSpec,
        infeed: Infeed,
        hooks: HookCalls,
        step: int,
        stop_step: int | None,
        clock: LoopLength,
        savers: Mapping[str, Saver],
        host_call_every: int,
        run_ahead: bool,
        report: TrainingReport,
        writer: SummaryWriter,
        interrupt: StopRequest,
        fail_on_nan_loss: bool = True,
    ) -> None:
        self._owner, self._loop, self._shard, self._infeed = owner, loop, shard, infeed
        self._hooks, self._step, self._stop_step, self._clock = hooks, step, stop_step, clock
        self._savers = savers
        self._host_call_every = host_call_every if shard.host_call is not None else 0
        self._most_pending = MAX_IN_FLIGHT - 1 if run_ahead else 0
        self._host = HostQueue(threaded=run_ahead, give_up=self._gives_up_host_calls)
        self._report, self._writer, self._interrupt = report, writer, interrupt
        self._pending: collections.deque[_Pending] = collections.deque()
        self._singles = SingleBatches()
        self._loop_ends: collections.deque[int] = collections.deque()
        self._seen_step = self._first_step = step
        self._in_step_seen = False
        self._last: StepOutputs | None = None
        self._losses = NanLosses(fail=fail_on_nan_loss)
        self._pace = DispatchLength()
        self._gave_up = False
        self.loss: float | None = None
        self._session = TrainingSession(
            self._save,
            self._finish_save,
            self._finish_steps,
            global_step=lambda: self._step,
            state=self._kept_state,
            arrays=self._arrays,
            names=fetch_names(shard),
            outputs=lambda: self._last,
            writer=writer,
            first_step=step,
            interrupted=self._interrupted,
        )

    def run(self) -> None:
        """Trains. When it returns, the last checkpoint is written and whole, and every host call has run."""
        try:
            self._run()
        except BaseException as error:
            self._stop_helpers()
            for saver in self._savers.values():
                try:
                    with self._writing():
                        saver.wait()
                except Exception as another:  # the first error is the one to raise
                    error.add_note(f"and then, of a checkpoint: {type(another).__name__}: {another}")
            raise
        finally:
            self._losses.warn_of_count(self._step - self._first_step)
        self._stop_helpers()
        for checkpoint_dir in self._savers:
            self._finish_save(checkpoint_dir)

    def _stop_helpers(self) -> None:
        """Ends the threads. Those of a run that a signal ends share the time that is left to it."""
        left = self._interrupt.seconds_left
        self._host.close(CLOSE_SECS if left is None else left)
        if left is not None:
            self._infeed.close(self._interrupt.seconds_left or 0.0)

    def _gives_up_host_calls(self) -> bool:
        """Whether the time that a signal leaves is up: from then on no host call is waited for."""
        if self._interrupt.seconds_left == 0.0 and not self._gave_up:
            self._gave_up = True
            _logger.warning("host_call is still busy; the checkpoint is written without waiting for it.")
        return self._gave_up

    def _run(self) -> None:
        self._hooks.after_create_session(self._session)
        try:
            self._run_loops()
            if self._interrupted():
                _logger.warning(
                    "Interrupted by a signal: saving step %d. Another one does not wait for it.", self._step
                )
            self._finish_steps()
            self._hooks.end(self._session)
        except KeyboardInterrupt:
            # Raised by the user's code, or by a second Ctrl-C: the state is good if nothing was being dispatched.
            if self._owner.state is not None:
                self._save_in_haste()
            raise
        except BaseException as error:
            self._settle(error)
            raise

    def _save_in_haste(self) -> None:
        """Saves, whatever hooks would do."""
        self._interrupt.hurry()
        self._drain(wait=False)
        if not self._host.failed:
            self._host.join()
        self._raise_if_diverged()
        for checkpoint_dir in self._savers:
            self._save(checkpoint_dir)

    def _run_loops(self) -> None:
        stop = False
        while not stop and not self._interrupted() and self._step != self._stop_step:
            length = self._clock.next(self._step, stop=self._stop_step, due=self._hooks.next_step(self._step))
            context = SessionRunContext(self._session, self._step, self._step + length - 1)
            try:
                asked = self._hooks.before_run(context)
                ended = self._run_loop(length)
                if self._step == context.first_step:
                    return  # the input has ended: no loop, no after_run
                context.last_step = self._step - 1
                self._hooks.after_run(context, asked, self._finish_host_calls if self._host_call_every else None)
            except (SessionStopped, Interrupted):  # the latter: of an evaluation that a hook makes
                return
            self._look_at_ready()
            self._raise_if_diverged()
            stop = ended or context.stop_requested

    def _run_loop(self, length: int) -> bool:
        """Dispatches up to `length` steps; returns whether the input has ended."""
        first, began, ended = self._step, time.monotonic(), False
        while not ended and self._step < first + length and not (self._step > first and self._loop_is_over(began)):
            while self._pending and not self._infeed.ready():
                self._look_at_first()  # rather than wait idly
            self._raise_if_diverged()
            cut_short = False

            def give_up() -> bool:
                nonlocal cut_short
                cut_short = self._interrupted() or (self._step > first and self._hooks.wants_loop_end(self._step))
                return cut_short

            with self._interrupt.doing("the input"):
                item = self._infeed.take(min(first + length - self._step, self._pace.most), give_up)
            if item is not None:
                # The first one may compile for long, and has nothing to lose.
                with self._interrupt.shield() if self._step > self._first_step else contextlib.nullcontext():
                    self._dispatch(item)
            elif cut_short:
                break
            else:
                ended = True
        if self._step > first:
            self._loop_ends.append(self._step)
            self._report_loops()
        if self._clock.timed:
            self._drain()
            self._clock.took(self._step - first, time.monotonic() - began)
        return ended

    def _loop_is_over(self, began: float) -> bool:
        """Whether a loop ends before it has all its steps: a signal, its time is up, or something is due by the clock."""
        return (
            self._interrupted() or self._clock.is_up(time.monotonic() - began) or self._hooks.wants_loop_end(self._step)
        )

    def _interrupted(self) -> bool:
        return self._interrupt.signum is not None

    def _dispatch(self, item: Slice | Batch) -> None:
        if isinstance(item, Batch):
            # One batch of its own size, on one device: a stack of capacity one.
            item = Slice(jax.tree.map(lambda x: x[None, None], item.data), 0, 1, item.position)
        item = self._singles.alone(item)
        self._keep_host_calls_in_step()
        began = self._pace.clock()
        state = self._owner.take()
        try:
            state, spec = self._loop(state, item.data, item.start, item.stop)
            self._pending.append(_Pending(self._step, spec, item.start, item.stop, began))
            self._step += item.stop - item.start
            self._owner.put(state, self._step, item.position)
        except BaseException:
            del state
            self._owner.give_back()
            raise
        self._last = StepOutputs(spec, self._shard, functools.partial(_whole_batch, index=item.stop - 1))
        while len(self._pending) > self._most_pending:
            self._look_at_first()

    def _keep_host_calls_in_step(self) -> None:
        """Waits for the host calls so far where host_call reads the state: it shall find that of its own dispatch.

        Whether it does shows in the first dispatch, which is therefore waited for a moment in any case.
        """
        if not self._host_call_every or self._step == self._first_step:
            return
        if not self._in_step_seen:
            self._in_step_seen = True
            self._drain()
            self._host.join(_FIRST_HOST_CALLS_SECS)
        if self._owner.was_read_by(self._host.thread):
            self._finish_host_calls()

    def _settle(self, error: BaseException) -> None:
        """Looks at what was dispatched before `error`: those steps have happened, and the state may be used again."""
        try:
            while self._pending and self._owner.state is not None:
                self._look_at_first()
            if not self._host.failed:
                self._host.join()
            if self._losses.error is not error:
                self._raise_if_diverged()
        except Exception as another:  # the first error is the one to raise
            error.add_note(f"and then: {type(another).__name__}: {another}")

    def _drain(self, *, wait: bool = True) -> None:
        while self._pending:
            self._look_at_first(wait=wait)

    def _look_at_ready(self) -> None:
        """Looks at the dispatches that are done, waiting for none."""
        while self._pending and _is_ready(self._pending[0].spec.loss):
            self._look_at_first()

    def _finish_host_calls(self) -> None:
        self._drain()
        with self._interrupt.doing("host_call"):
            self._host.join()

    def _finish_steps(self) -> None:
        self._finish_host_calls()
        self._raise_if_diverged()

    def _look_at_first(self, *, wait: bool = True) -> None:
        """Fetches the outputs of the first dispatch, waiting for it: losses, and host call's tensors if they are wanted.

        Args:
          wait: whether to wait when too many host calls wait.
        """
        dispatch = self._pending[0]
        if self._losses.error is not None:
            self._pending.popleft()  # not worth telling
            return
        first, end = dispatch.first_step, dispatch.first_step + dispatch.stop - dispatch.start
        every = self._host_call_every
        wanted = [step for step in range(first, end) if step % every == 0] if every else []
        try:
            spec = jax.device_get(dispatch.spec if wanted else replaced(dispatch.spec, host_call=None))
        except Exception:
            self._owner.discard()  # what went wrong on the device has gone into the state
            raise
        self._pace.done(end - first, dispatch.began)
        losses = self._losses.check(first, spec.loss[dispatch.start : dispatch.stop])
        # Not earlier: an interrupt before this point must not let the losses go unseen.
        self._pending.popleft()
        if not every:
            self._report.write_losses(first, losses)
        elif not self._host.failed:
            wanted = [step for step in wanted if step < first + len(losses)]
            job = functools.partial(self._host_calls, dispatch, spec, wanted, losses)
            with self._interrupt.doing("host_call"):
                self._host.put(job, wait=wait)
        self.loss = float(losses[-1])
        self._seen_step = first + len(losses)
        self._report.show_progress(self._seen_step, self.loss)
        self._report_loops()

    def _report_loops(self) -> None:
        while self._loop_ends and self._loop_ends[0] <= self._seen_step:
            assert self.loss is not None
            self._report.log_loop(self._loop_ends.popleft(), self.loss)

    def _host_calls(self, dispatch: _Pending, spec: TPUEstimatorSpec, wanted: list[int], losses: np.ndarray) -> None:
        """The host calls of one dispatch. Runs beside the devices."""
        for step in wanted:
            index = dispatch.start + step - dispatch.first_step
            try:
                with run_position(step, self._writer):
                    run_host_call(on_host(next(steps_of(spec, index, index + 1))))
            except BaseException as error:
                error.add_note(f"in training, at global step {step}")
                raise
        self._report.write_losses(dispatch.first_step, losses)

    def _raise_if_diverged(self) -> None:
        if self._losses.error is not None:
            self._owner.discard()  # the next call starts from the latest checkpoint
            raise self._losses.error

    def _kept_state(self) -> Any:
        """The state for a hook, which may hold it for as long as it likes."""
        lease = self._owner.lease()
        return None if lease is None else lease.keep()

    def _arrays(self) -> Mapping[str, Any]:
        return {name: first_shard(array) for name, array in state_arrays(self._owner.state).items()}

    def _save(self, checkpoint_dir: str) -> None:
        # A checkpoint waits for the losses of all steps before it: none is written behind a NaN.
        self._drain()
        self._raise_if_diverged()
        try:
            with self._writing():
                self._savers[checkpoint_dir].save(first_shard(self._owner.state), self._owner.position)
        except NanLossDuringTrainingError:
            self._owner.discard()
            raise

    def _finish_save(self, checkpoint_dir: str) -> None:
        with self._writing():
            self._savers[checkpoint_dir].wait()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Around everything that writes: an interrupt in the middle of it would leave a thread that never ends."""
        with self._interrupt.doing("the checkpoint"), self._interrupt.shield():
            yield


def _whole_batch(leaf: Any, *, index: int) -> np.ndarray:
    """One step of a leaf of a `Program` output, of all shards, on the host."""
    one: np.ndarray = concatenate_shards(jax.device_get(leaf)[index])
    return one


def _is_ready(array: Any) -> bool:
    is_ready = getattr(array, "is_ready", None)  # NumPy's have none
    return is_ready is None or bool(is_ready())
