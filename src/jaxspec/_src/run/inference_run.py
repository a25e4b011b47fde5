"""One evaluation or prediction: takes batches, and calls the hooks around each."""

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from jaxspec._src.base.types import Array
from jaxspec._src.checkpoint.named_arrays import state_arrays
from jaxspec._src.data.prefetch import Infeed
from jaxspec._src.device.shards import first_shard
from jaxspec._src.run.engine import VERBS, Engine
from jaxspec._src.run.hook_calls import HookCalls, SessionStopped
from jaxspec._src.run.host_batches import HostBatch, run_batches
from jaxspec._src.run.programs import InferenceProgram
from jaxspec._src.run.session import RunningSession
from jaxspec._src.run.signals import raise_if_interrupted
from jaxspec._src.run.sources import Source
from jaxspec._src.run.step_outputs import StepOutputs
from jaxspec._src.spec.fetch_names import fetch_names
from jaxspec._src.spec.hook import SessionRunContext, SessionRunHook
from jaxspec._src.spec.mode import ModeKeys
from jaxspec._src.step.init import noting_verb
from jaxspec._src.step.state import TrainState
from jaxspec._src.summary.writer import SummaryWriter

if TYPE_CHECKING:
    from jaxspec._src.run.progress import ProgressBar

_logger = logging.getLogger("jaxspec")

_SESSION_NAMES = {ModeKeys.EVAL: "evaluation", ModeKeys.PREDICT: "prediction"}


def open_run(
    stack: contextlib.ExitStack,
    engine: Engine,
    mode: str,
    source: Source,
    infeed: Infeed,
    hooks: tuple[SessionRunHook, ...],
    writer: SummaryWriter | None = None,
    limit: int | None = None,
) -> "InferenceRun":
    """A run; what it needs ends with `stack`. No generator: a StopIteration of a hook would become another error."""
    fresh = source.live is None and source.path is None
    if fresh:
        _logger.warning(
            "Could not find trained model in model_dir: %s, running initialization. The results are those of fresh weights; "
            "check model_dir, or train first.",
            engine.model_dir,
        )
    with noting_verb(VERBS[mode]):
        state = engine.initial_state.for_inference(source, infeed)
        program = engine.programs.inference(mode, infeed, state)
        if fresh:
            state = engine.initial_state.finish_fresh(state, program.spec)
    spec_hooks = program.spec.evaluation_hooks if mode == ModeKeys.EVAL else program.spec.prediction_hooks
    calls = stack.enter_context(HookCalls((*hooks, *(spec_hooks or ())), f"in {_SESSION_NAMES[mode]}"))
    infeed.start(program.capacity)
    batches = run_batches(state, infeed, program.program, program.ragged, program.capacity)
    stack.enter_context(contextlib.closing(batches))
    bar = stack.enter_context(engine.progress(mode, start=0, total=limit))
    return InferenceRun(batches, calls, program, source, state, writer, bar, limit)


class InferenceRun(RunningSession):
    """Takes batches with the hooks around each, and is the session of these hooks (`hooks.Session`).

    Args:
      batches: what `run_batches` yields.
      hooks: with `begin` called.
      program: its spec names the outputs.
      source: of the state.
      state: that of the source, on the devices.
      summary_writer: of the event files, for hooks.
      bar: the progress bar, or None.
      limit: batches to take at most; None: all.
    """

    first_step = 0
    interrupted = False  # a signal ends the run by an exception

    def __init__(
        self,
        batches: Iterator[HostBatch],
        hooks: HookCalls,
        program: InferenceProgram,
        source: Source,
        state: TrainState,
        summary_writer: SummaryWriter | None,
        bar: "ProgressBar | None",
        limit: int | None,
    ) -> None:
        super().__init__(fetch_names(program.spec))
        self._batches, self._hooks, self._shard, self._limit, self._bar = batches, hooks, program.spec, limit, bar
        self._source, self._state = source, state
        self._number, self._stop = 0, False
        self.summary_writer = summary_writer
        self._last: StepOutputs | None = None
        self._hooks.after_create_session(self)

    # Not a generator: a StopIteration of the user's would become another error in one.
    def next_batch(self, use: Callable[[HostBatch], None] = lambda batch: None) -> HostBatch | None:
        """The next batch, after `use` and the hooks' `after_run`; None when there is no more."""
        if self._stop or self._number == self._limit:
            return None
        # A signal that ends a training ends what it evaluates, too; else Ctrl-C comes by itself.
        raise_if_interrupted()
        context = SessionRunContext(self, self._number, self._number)
        try:
            asked = self._hooks.before_run(context)
            batch = next(self._batches, None)
            if batch is None:
                return None
            self._last = StepOutputs(batch.spec, self._shard, np.asanyarray)
            use(batch)
            self._hooks.after_run(context, asked)
        except SessionStopped:
            return None
        self._number += 1
        self._report()
        self._stop = context.stop_requested
        return batch

    def end(self) -> None:
        """Calls `end` of each hook."""
        self._hooks.end(self)

    def _report(self) -> None:
        if self._bar is not None:
            self._bar.show(self._number)
        elif self._limit is not None and self._number % math.ceil(self._limit / 10) == 0:
            _logger.info("Evaluation [%d/%d]", self._number, self._limit)

    # The session of the hooks: `hooks.Session` says what each is.

    @property
    def global_step(self) -> int:
        return self._source.step

    @property
    def state(self) -> TrainState:
        if self._source.live is not None:
            self._source.live.keep()
        return self._state

    @property
    def _outputs(self) -> StepOutputs | None:
        return self._last

    def _arrays(self) -> Mapping[str, Array]:
        return {name: first_shard(array) for name, array in state_arrays(self._state).items()}
