"""One evaluation or prediction: takes batches, and calls the hooks around each."""

import contextlib
import logging
import math
from collections.abc import Callable

import numpy as np

from jaxspec._src.data.prefetch import Infeed
from jaxspec._src.run.engine import VERBS, Engine
from jaxspec._src.run.hook_calls import HookCalls, SessionStopped
from jaxspec._src.run.host_batches import HostBatch, run_batches
from jaxspec._src.run.running_session import RunningSession
from jaxspec._src.run.signals import raise_if_interrupted
from jaxspec._src.run.sources import Source
from jaxspec._src.spec.hook import SessionRunContext, SessionRunHook
from jaxspec._src.spec.mode import Mode, ModeKeys
from jaxspec._src.spec.tpu_estimator_spec import TPUEstimatorSpec
from jaxspec._src.step.init import noting_verb
from jaxspec._src.step.state import TrainState
from jaxspec._src.summary.writer import SummaryWriter

_logger = logging.getLogger("jaxspec")

_SESSION_NAMES = {ModeKeys.EVAL: "evaluation", ModeKeys.PREDICT: "prediction"}


class InferenceRun(RunningSession):
    """Takes batches with the hooks around each, and is the session of these hooks (`hooks.Session`).

    The constructor compiles the programs, and calls `begin` and `after_create_session` of the hooks.

    Args:
      stack: the hooks, the programs and the progress bar end with it.
      engine: of the estimator.
      mode: EVAL or PREDICT.
      source: of the state.
      infeed: the batches, not started.
      hooks: the user's; those of the spec follow them.
      summary_writer: of the event files, for hooks.
      limit: batches to take at most; None: all.
      wanted: given the outputs of a step, those that the caller uses. Without hooks, which may ask for any, the others
        are not fetched. It is called with shapes for leaves first, and may raise.
    """

    first_step = 0
    interrupted = False  # a signal ends the run by an exception

    # Not a context manager made of a generator: a StopIteration of a hook would become another error.
    def __init__(
        self,
        stack: contextlib.ExitStack,
        engine: Engine,
        mode: Mode,
        source: Source,
        infeed: Infeed,
        hooks: tuple[SessionRunHook, ...],
        summary_writer: SummaryWriter | None = None,
        limit: int | None = None,
        wanted: Callable[[TPUEstimatorSpec], TPUEstimatorSpec] = lambda spec: spec,
    ) -> None:
        if source.fresh and engine.warm_start is None:
            _logger.warning(
                "Could not find trained model in model_dir: %s, running initialization. The results are those of fresh "
                "weights; check model_dir, or train first.",
                engine.model_dir,
            )
        with noting_verb(VERBS[mode]):
            state = engine.initial_state.for_inference(source, infeed)
            programs = engine.programs.inference(mode, infeed, state)
            if source.fresh:
                state = engine.initial_state.finish_fresh(state, programs.spec)
        wanted(programs.spec)
        super().__init__(programs.spec)
        spec_hooks = programs.spec.evaluation_hooks if mode == ModeKeys.EVAL else programs.spec.prediction_hooks
        calls = HookCalls((*hooks, *(spec_hooks or ())), f"in {_SESSION_NAMES[mode]}")
        self._hooks = stack.enter_context(calls)
        infeed.start(programs.capacity, programs.most_steps)
        batches = run_batches(state, infeed, programs, (lambda spec: spec) if calls.hooks else wanted)
        self._batches = stack.enter_context(contextlib.closing(batches))
        self._bar = stack.enter_context(engine.progress(mode, start=0, total=limit))
        self._source, self._state, self._limit = source, state, limit
        self._number, self._stop = 0, False
        self.summary_writer = summary_writer
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
            self._step_done(batch.spec, np.asanyarray)
            use(batch)
            self._hooks.after_run(context, asked)
        except SessionStopped:
            return None
        self._number += 1
        if self._bar is not None:
            self._bar.show(self._number)
        elif self._limit is not None and self._number % math.ceil(self._limit / 10) == 0:
            _logger.info("Evaluation [%d/%d]", self._number, self._limit)
        self._stop = context.stop_requested
        return batch

    def end(self) -> None:
        """Calls `end` of each hook."""
        self._hooks.end(self)

    # The session of the hooks: `hooks.Session` says what each is.

    @property
    def global_step(self) -> int:
        return self._source.step

    @property
    def state(self) -> TrainState:
        if self._source.live is not None:
            self._source.live.keep()
        return self._state

    def _current_state(self) -> TrainState:
        return self._state
