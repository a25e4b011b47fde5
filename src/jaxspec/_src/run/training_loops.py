"""The loops of one training: dispatches their steps, and calls the hooks between them."""

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Sequence

import jax

from jaxspec._src.base.activities import doing
from jaxspec._src.base.errors import Interrupted, NanLossDuringTrainingError
from jaxspec._src.data.batch import InputBatch
from jaxspec._src.data.prefetch import Infeed
from jaxspec._src.data.stacks import Slice, position_after
from jaxspec._src.device.processes import Exchange
from jaxspec._src.device.shards import fetch_step, stack_of_one
from jaxspec._src.run.agreement import Agreement
from jaxspec._src.run.engine import Engine
from jaxspec._src.run.hook_calls import HookCalls, SessionStopped
from jaxspec._src.run.host_queue import CLOSE_SECS
from jaxspec._src.run.in_flight import Dispatch, InFlight
from jaxspec._src.run.loop_length import LoopLength
from jaxspec._src.run.program_cache import ModePrograms
from jaxspec._src.run.running_session import RunningSession
from jaxspec._src.run.signals import StopRequest
from jaxspec._src.spec.hook import SessionRunContext
from jaxspec._src.step.state import TrainState
from jaxspec._src.summary.writer import SummaryWriter

_logger = logging.getLogger("jaxspec")


class TrainingLoops(RunningSession):
    """Runs the steps of one call of train, and is the session of its hooks (`hooks.TrainingSession`).

    Args:
      engine: of the estimator; its live state is the one to train.
      exchange: of the run: the processes agree on the length of each loop and dispatch, and on when to stop.
      programs: of TRAIN; the one of full batches is dispatched.
      in_flight: looks at the outputs.
      infeed: the batches, started.
      hooks: with `begin` called; the checkpoint savers are among them.
      step: the global step of the state.
      stop_step: the global step to end at; None: at the end of the input.
      checkpoint_dirs: where the hooks save to: an interrupted run saves there, too.
      interrupt: set by a signal.
      summary_writer: the run's own.
    """

    def __init__(
        self,
        engine: Engine,
        exchange: Exchange,
        programs: ModePrograms,
        in_flight: InFlight,
        infeed: Infeed,
        hooks: HookCalls,
        step: int,
        stop_step: int | None,
        checkpoint_dirs: Sequence[str],
        interrupt: StopRequest,
        summary_writer: SummaryWriter,
    ) -> None:
        super().__init__(programs.spec)
        self._live_state, self._program, self._infeed = engine.live_state, programs.full, infeed
        self._most_steps = programs.most_steps
        self._hooks, self._in_flight, self._exchange = hooks, in_flight, exchange
        self._stop_step, self._interrupt = stop_step, interrupt
        self._length = LoopLength(engine.loop_steps, engine.tpu_config.loop_seconds)
        self._savers = {checkpoint_dir: engine.saver(checkpoint_dir) for checkpoint_dir in checkpoint_dirs}
        self._step = self.first_step = step
        self._agreement = Agreement(exchange, interrupt)
        self.summary_writer = summary_writer

    def train(self) -> None:
        """Trains. When it returns, the last checkpoint is written and whole, and every host call has run."""
        try:
            self._run()
        except BaseException as error:
            self._stop_helpers()
            for checkpoint_dir in self._savers:
                try:
                    self._finish_checkpoint_after_error(checkpoint_dir)
                except Exception as another:  # the first error is the one to raise
                    error.add_note(f"and then, of a checkpoint: {type(another).__name__}: {another}")
            raise
        finally:
            self._in_flight.losses.warn_of_count(self._step - self.first_step)
        self._stop_helpers()
        for checkpoint_dir in self._savers:
            self.finish_checkpoint(checkpoint_dir)

    def _run(self) -> None:
        self._hooks.after_create_session(self)
        try:
            self._run_loops()
            if self.interrupted:
                _logger.warning(
                    "Interrupted by a signal: saving step %d. Another one does not wait for it.", self._step
                )
            self.finish_steps()
            self._hooks.end(self)
        except KeyboardInterrupt:
            # Raised by the user's code, or by a second Ctrl-C: the state is good if nothing was being dispatched.
            if self._live_state.state is not None:
                self._interrupt.hurry()
                self._in_flight.finish_in_haste()
                # Whatever hooks would do. Several processes save together, and one of them alone cannot.
                for checkpoint_dir in self._savers if self._exchange.count == 1 else ():
                    self.save_checkpoint(checkpoint_dir)
            raise
        except BaseException as error:
            self._in_flight.settle(error)
            raise

    def _run_loops(self) -> None:
        stop = False
        while self._step != self._stop_step and (length := self._next_length(stop)):
            context = SessionRunContext(self, self._step, self._step + length - 1)
            try:
                asked = self._hooks.before_run(context)
            except (SessionStopped, Interrupted):
                self._agreed_steps(0)  # the other processes are about to dispatch
                return
            try:
                self._run_loop(length)
                if self._step == context.first_step:
                    return  # the input has ended: no loop, no after_run
                context.last_step = self._step - 1
                finish = self._in_flight.finish_host_calls if self._in_flight.host_calls else None
                self._hooks.after_run(context, asked, finish)
            except (SessionStopped, Interrupted):  # the latter: of an evaluation that a hook makes
                stop = True
                continue
            self._in_flight.look_at_ready()
            for saver in self._savers.values():
                saver.raise_if_failed()  # rather than when the next checkpoint is due
            stop = self._agreement.input_ended or context.stop_requested

    def _next_length(self, stop: bool) -> int:
        """The steps of the next loop; 0 if a process asks to stop."""
        diverged = self._in_flight.losses.error is not None
        length = 0
        if not (stop or self.interrupted or diverged):
            length = self._length.next(self._step, stop=self._stop_step, due=self._hooks.next_step(self._step))
        length = self._agreement.loop_steps(self._step, length, diverged=diverged)
        self._raise_if_diverged()
        return length

    def _run_loop(self, length: int) -> None:
        """Dispatches `length` steps; fewer if the input ends, a signal comes, or something is due by the clock."""
        first, began = self._step, time.monotonic()

        def is_cut_short() -> bool:
            return self.interrupted or (self._step > first and self._hooks.wants_loop_end(self._step))

        while self._step < first + length:
            ready = 0
            if self._step == first or not (self._length.is_up(time.monotonic() - began) or is_cut_short()):
                ready = self._count_ready(first + length - self._step, is_cut_short)
            count = self._agreed_steps(ready)
            if not count:
                break
            # The first one may compile for long, and has nothing to lose.
            with self._interrupt.shield() if self._step > self.first_step else contextlib.nullcontext():
                self._dispatch(self._infeed.take(count))
        if self._step > first:
            self._in_flight.loop_ended(self._step)
        if self._length.timed:
            self._in_flight.drain()
            self._length.took(self._step - first, time.monotonic() - began)

    def _agreed_steps(self, ready: int) -> int:
        """The steps of the next dispatch, for which this process has `ready` batches; 0 ends the loop."""
        diverged = self._in_flight.losses.error is not None
        steps = self._agreement.dispatch_steps(
            self._step,
            ready,
            ended=self._infeed.ended,
            diverged=diverged,
            shapes=self._infeed.next_shapes() if ready and self._agreement.compares_shapes else "",
        )
        self._raise_if_diverged()
        return steps

    def _count_ready(self, most: int, give_up: Callable[[], bool]) -> int:
        """Waits for the input; returns how many batches the next dispatch may have."""
        while self._in_flight and not self._infeed.ready():
            self._in_flight.look_at_first()  # rather than wait idly
        if self._in_flight.losses.error is not None:
            return 0
        with doing("the input"):
            return self._infeed.count_ready(min(most, self._most_steps, self._in_flight.pace.most), give_up)

    def _raise_if_diverged(self) -> None:
        """Raises if a process has seen a NaN loss: all see it then."""
        if self._agreement.diverged:
            self._in_flight.drain()
        self._in_flight.raise_if_diverged()

    def _dispatch(self, item: Slice | InputBatch) -> None:
        if isinstance(item, InputBatch):
            item = Slice(stack_of_one(item.data), 0, 1, position_after(item))
        if self._step > self.first_step:
            self._in_flight.host_calls.keep_in_step(self._in_flight.drain)
        began = self._in_flight.pace.clock()
        state = self._live_state.take()
        try:
            with jax.profiler.StepTraceAnnotation("train", step_num=self._step):
                state, spec = self._program(state, item.data, item.start, item.count)
            self._in_flight.add(Dispatch(self._step, spec, item.count, began, item.finish))
            self._step_done(spec, functools.partial(fetch_step, index=item.count - 1))
            self._step += item.count
            self._live_state.put(state, self._step, item.position_at)
        except BaseException as error:
            del state
            self._live_state.give_back()
            item.explain(error)
            raise
        self._in_flight.look_at_surplus()

    def _stop_helpers(self) -> None:
        """Ends the threads. Those of a run that a signal ends share the time that is left to it."""
        self._in_flight.host_calls.close()
        if self._interrupt.seconds_left is not None:
            self._infeed.close(self._interrupt.seconds_left)

    # The session of the hooks: `hooks.TrainingSession` says what each is.

    @property
    def global_step(self) -> int:
        return self._step

    @property
    def flops_per_step(self) -> float | None:
        return self._program.flops_per_step

    @property
    def peak_flops_per_sec(self) -> float | None:
        return self._program.peak_flops_per_sec

    @property
    def interrupted(self) -> bool:
        return self._interrupt.signum is not None

    @property
    def state(self) -> TrainState | None:
        lease = self._live_state.lease()
        return None if lease is None else lease.keep()

    def clock(self) -> float:
        return self._exchange.clock()

    def _current_state(self) -> TrainState:
        assert self._live_state.state is not None
        return self._live_state.state

    def finish_steps(self) -> None:
        self._in_flight.finish_steps()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        # A checkpoint waits for the losses of all steps before it: none is written after a NaN.
        self._in_flight.drain()
        self._in_flight.raise_if_diverged()
        try:
            with doing("the checkpoint"), self._interrupt.shield():
                self._savers[checkpoint_dir].save(self._current_state(), self._live_state.position)
        except NanLossDuringTrainingError:
            self._live_state.discard()
            raise

    def _finish_checkpoint_after_error(self, checkpoint_dir: str) -> None:
        with doing("the checkpoint"), self._interrupt.shield():
            self._savers[checkpoint_dir].wait_after_error(CLOSE_SECS)

    def finish_checkpoint(self, checkpoint_dir: str) -> None:
        # An interrupt in the middle of this would leave a thread that never ends.
        with doing("the checkpoint"), self._interrupt.shield():
            self._savers[checkpoint_dir].wait()
