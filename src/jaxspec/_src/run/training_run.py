"""One training session: dispatches loops of steps, and calls the hooks between them."""

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping

from jaxspec._src.base.errors import NanLossDuringTrainingError
from jaxspec._src.base.types import Array
from jaxspec._src.checkpoint.saver import Saver
from jaxspec._src.checkpoint.store import state_arrays
from jaxspec._src.data.batch import Batch
from jaxspec._src.data.prefetch import Infeed
from jaxspec._src.data.stacks import SingleBatches, Slice, stack_of_one
from jaxspec._src.device.gather import first_shard
from jaxspec._src.device.live_state import StateOwner
from jaxspec._src.device.program import Program
from jaxspec._src.run.hook_calls import HookCalls, SessionStopped
from jaxspec._src.run.in_flight import Dispatch, InFlight
from jaxspec._src.run.loop_length import LoopClock, loop_length
from jaxspec._src.run.session import RunningTraining
from jaxspec._src.run.signals import Interrupted, StopRequest
from jaxspec._src.run.step_outputs import StepOutputs
from jaxspec._src.spec.hook import SessionRunContext
from jaxspec._src.step.state import TrainState
from jaxspec._src.summary.writer import SummaryWriter

_logger = logging.getLogger("jaxspec")


class TrainingRun:
    """Runs the steps of one call of train. It is what the session asks (`session.TrainingView`).

    Args:
      owner: holds the live state.
      program: what is dispatched.
      in_flight: looks at the outputs.
      infeed: the batches, started.
      hooks: with `begin` called; the checkpoint savers are among them.
      step: the global step of the state.
      stop_step: the global step to end at; None: at the end of the input.
      clock: how long a loop is.
      savers: by the directories that the hooks save to: an interrupted run saves there, too.
      interrupt: set by a signal.
      fetch_names: of the outputs of a step.
      summary_writer: the run's own.
    """

    def __init__(
        self,
        *,
        owner: StateOwner,
        program: Program,
        in_flight: InFlight,
        infeed: Infeed,
        hooks: HookCalls,
        step: int,
        stop_step: int | None,
        clock: LoopClock,
        savers: Mapping[str, Saver],
        interrupt: StopRequest,
        fetch_names: list[str],
        summary_writer: SummaryWriter,
    ) -> None:
        self._owner, self._program, self._in_flight, self._infeed = owner, program, in_flight, infeed
        self._hooks, self._stop_step, self._clock, self._savers = hooks, stop_step, clock, savers
        self._interrupt = interrupt
        self._singles = SingleBatches()
        self.global_step = self.first_step = step
        self.fetch_names, self.summary_writer = fetch_names, summary_writer
        self._session = RunningTraining(self)

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
            self._in_flight.log_nan_losses(self.global_step - self.first_step)
        self._stop_helpers()
        for checkpoint_dir in self._savers:
            self.finish_save(checkpoint_dir)

    def _run(self) -> None:
        self._hooks.after_create_session(self._session)
        try:
            self._run_loops()
            if self.interrupted:
                _logger.warning(
                    "Interrupted by a signal: saving step %d. Another one does not wait for it.", self.global_step
                )
            self.finish_steps()
            self._hooks.end(self._session)
        except KeyboardInterrupt:
            # Raised by the user's code, or by a second Ctrl-C: the state is good if nothing was being dispatched.
            if self._owner.state is not None:
                self._save_in_haste()
            raise
        except BaseException as error:
            self._in_flight.settle(error)
            raise

    def _run_loops(self) -> None:
        stop = False
        while not stop and not self.interrupted and self.global_step != self._stop_step:
            length = loop_length(
                self.global_step,
                iterations=self._clock.iterations,
                stop=self._stop_step,
                wanted=self._hooks.next_step(self.global_step),
            )
            context = SessionRunContext(self._session, self.global_step, self.global_step + length - 1)
            try:
                asked = self._hooks.before_run(context)
                ended = self._run_loop(length)
                if self.global_step == context.first_step:
                    return  # the input has ended: no loop, no after_run
                context.last_step = self.global_step - 1
                finish = self._in_flight.finish_host_calls if self._in_flight.runs_host_calls else None
                self._hooks.after_run(context, asked, finish)
            except (SessionStopped, Interrupted):  # the latter: of an evaluation that a hook makes
                return
            self._in_flight.look_at_ready()
            self._in_flight.raise_if_diverged()
            stop = ended or context.stop_requested

    def _run_loop(self, length: int) -> bool:
        """Dispatches up to `length` steps; returns whether the input has ended."""
        first, began, ended = self.global_step, time.monotonic(), False
        while not ended and self.global_step < first + length and not self._loop_is_over(first, began):
            while self._in_flight and not self._infeed.ready():
                self._in_flight.look_at_first()  # rather than wait idly
            self._in_flight.raise_if_diverged()
            cut_short = False

            def give_up() -> bool:
                nonlocal cut_short
                cut_short = self.interrupted or (
                    self.global_step > first and self._hooks.wants_loop_end(self.global_step)
                )
                return cut_short

            with self._interrupt.doing("the input"):
                item = self._infeed.take(min(first + length - self.global_step, self._in_flight.pace.most), give_up)
            if item is not None:
                # The first one may compile for long, and has nothing to lose.
                with self._interrupt.shield() if self.global_step > self.first_step else contextlib.nullcontext():
                    self._dispatch(item)
            elif cut_short:
                break
            else:
                ended = True
        if self.global_step > first:
            self._in_flight.loop_ended(self.global_step)
        if self._clock.timed:
            self._in_flight.drain()
            self._clock.took(self.global_step - first, time.monotonic() - began)
        return ended

    def _loop_is_over(self, first: int, began: float) -> bool:
        """Whether a loop ends before it has all its steps: a signal, its time is up, or something is due by the clock."""
        return self.global_step > first and (
            self.interrupted
            or self._clock.is_up(time.monotonic() - began)
            or self._hooks.wants_loop_end(self.global_step)
        )

    def _dispatch(self, item: Slice | Batch) -> None:
        item = stack_of_one(item) if isinstance(item, Batch) else self._singles.alone(item)
        self._in_flight.keep_host_calls_in_step(self.global_step)
        began = self._in_flight.pace.clock()
        state = self._owner.take()
        try:
            state, spec = self._program(state, item.data, item.start, item.stop)
            self._in_flight.add(Dispatch(self.global_step, spec, item.start, item.stop, began))
            self.global_step += item.stop - item.start
            self._owner.put(state, self.global_step, item.position)
        except BaseException:
            del state
            self._owner.give_back()
            raise
        self._in_flight.look_at_surplus()

    def _stop_helpers(self) -> None:
        """Ends the threads. Those of a run that a signal ends share the time that is left to it."""
        self._in_flight.close()
        if self._interrupt.seconds_left is not None:
            self._infeed.close(self._interrupt.seconds_left)

    def _save_in_haste(self) -> None:
        """Saves, whatever hooks would do."""
        self._interrupt.hurry()
        self._in_flight.finish_in_haste()
        for checkpoint_dir in self._savers:
            self.save(checkpoint_dir)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Around everything that writes: an interrupt in the middle of it would leave a thread that never ends."""
        with self._interrupt.doing("the checkpoint"), self._interrupt.shield():
            yield

    # What the session asks.

    @property
    def interrupted(self) -> bool:
        """Whether a signal ends the run."""
        return self._interrupt.signum is not None

    @property
    def outputs(self) -> StepOutputs | None:
        """Those of the last step; None before the first."""
        return self._in_flight.last

    def lend_state(self) -> TrainState | None:
        """The state for a hook, which may hold it for as long as it likes."""
        lease = self._owner.lease()
        return None if lease is None else lease.keep()

    def arrays(self) -> Mapping[str, Array]:
        """The arrays of the state by name, on the first device."""
        return {name: first_shard(array) for name, array in state_arrays(self._owner.state).items()}

    def finish_steps(self) -> None:
        """Waits until every step so far is done, and host_call has run for it; raises if a loss was NaN."""
        self._in_flight.finish_steps()

    def save(self, checkpoint_dir: str) -> None:
        """Starts to write a checkpoint, which waits for the losses of all steps before it: none is written behind a NaN."""
        self._in_flight.drain()
        self._in_flight.raise_if_diverged()
        try:
            with self._writing():
                self._savers[checkpoint_dir].save(first_shard(self._owner.state), self._owner.position)
        except NanLossDuringTrainingError:
            self._owner.discard()
            raise

    def finish_save(self, checkpoint_dir: str) -> None:
        """Waits until the last checkpoint is whole on disk."""
        with self._writing():
            self._savers[checkpoint_dir].wait()
