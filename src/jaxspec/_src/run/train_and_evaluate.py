"""train_and_evaluate: training with an evaluation at its checkpoints."""

import logging
import time

from jaxspec._src.base.errors import Interrupted
from jaxspec._src.base.paths import join
from jaxspec._src.base.types import Clock, Metrics
from jaxspec._src.checkpoint.latest import checkpoint_step
from jaxspec._src.device.processes import Exchange, open_exchange
from jaxspec._src.hooks.checkpoint_saver import CheckpointSaverListener
from jaxspec._src.hooks.session import Session, TrainingSession
from jaxspec._src.hooks.timer import SecondOrStepTimer
from jaxspec._src.run.estimator import TPUEstimator
from jaxspec._src.run.evaluation_due import EvaluationDue
from jaxspec._src.run.train_and_eval_specs import EvalSpec, TrainSpec

_logger = logging.getLogger("jaxspec")


def train_and_evaluate(
    estimator: TPUEstimator,
    train_spec: TrainSpec,
    eval_spec: EvalSpec,
    *,
    clock: Clock | None = None,
) -> tuple[Metrics | None, list[object] | None]:
    """Trains, and evaluates at checkpoints. An evaluation uses the state in memory; no checkpoint is read.

    A checkpoint is evaluated if `throttle_secs` have passed since the start of the last evaluation. The last checkpoint
    is always evaluated, unless Ctrl-C or SIGTERM ends the run. The checkpoint at the start of the call is evaluated
    only if an earlier run was killed before it had evaluated and exported that checkpoint. `RunConfig` says how often
    checkpoints are written.

    Args:
      estimator: it continues from its latest checkpoint.
      train_spec: if its max_steps is reached already, there is no training.
      eval_spec: its exporters are asked after each evaluation, with `is_the_final_export` true once max_steps is
        reached.
      clock: seconds since some start, for `throttle_secs`; None: that of the session.

    Returns:
      The metrics of the last evaluation and the list of what the exporters returned then; (None, None) if nothing was
      done.

    Raises:
      TypeError: for arguments of another type.
      ValueError: if checkpoints are switched off.
      Anything that `train`, `evaluate` or an exporter raises, as itself.
    """
    for name, given, expected in (
        ("estimator", estimator, TPUEstimator),
        ("train_spec", train_spec, TrainSpec),
        ("eval_spec", eval_spec, EvalSpec),
    ):
        if not isinstance(given, expected):
            raise TypeError(f"`{name}` must have type `jaxspec.{expected.__name__}`. Got: {type(given)}")
    config = estimator.config
    _logger.info(
        "Start train and evaluate loop. The evaluate will happen after every checkpoint, but not within %s seconds of "
        "the last one. Checkpoint frequency is determined based on RunConfig arguments: save_checkpoints_steps %s or "
        "save_checkpoints_secs %s.",
        *(eval_spec.throttle_secs, config.save_checkpoints_steps, config.save_checkpoints_secs),
    )
    listener = _EvaluatingListener(estimator, eval_spec, train_spec.max_steps, clock)
    listener.catch_up()
    estimator.train(
        train_spec.input_fn,
        hooks=train_spec.hooks,
        max_steps=train_spec.max_steps,
        saving_listeners=[*(train_spec.saving_listeners or ()), listener],
        resume_input=train_spec.resume_input,
    )
    return listener.metrics, listener.exports


class _EvaluatingListener(CheckpointSaverListener):
    """Evaluates and exports at checkpoints."""

    def __init__(self, estimator: TPUEstimator, spec: EvalSpec, max_steps: int | None, clock: Clock | None) -> None:
        self._estimator, self._spec, self._max_steps = estimator, spec, max_steps
        self.metrics: Metrics | None = None
        self.exports: list[object] | None = None
        self._clock, self._timer = (
            clock,
            SecondOrStepTimer(every_secs=spec.throttle_secs, clock=clock or time.monotonic),
        )
        self._due = EvaluationDue(estimator.eval_dir(spec.name))
        self._evaluated: str | None = None

    def catch_up(self) -> None:
        """Evaluates and exports the latest checkpoint, if a run before this one was to, and was killed."""
        with self._exchange() as exchange:
            self._timer.clock = self._clock or exchange.clock
            latest, step = exchange.from_first("what is due", (self._estimator.latest_checkpoint(), self._due.step()))
        if latest is None or step is None or checkpoint_step(latest) != step:
            return
        _logger.warning(
            "The run before this one ended before it had evaluated and exported %s: that is done now.", latest
        )
        self._evaluate(step)

    def begin(self) -> None:
        self._at_start = True

    def before_save(self, session: TrainingSession, global_step: int) -> None:
        self._timer.clock = self._clock or session.clock
        if self._at_start or session.interrupted:
            return
        if global_step == self._max_steps or self._timer.should_trigger_for_step(global_step):
            self._due.note(global_step)

    def after_save(self, session: Session, global_step: int) -> None:
        if self._at_start:
            self._at_start = False
        elif session.interrupted:
            _logger.info("Stopped by a signal: step %d is saved, and not evaluated.", global_step)
        elif self._timer.should_trigger_for_step(global_step):
            self._evaluate(global_step, session)
        else:
            _logger.info("Skip the current checkpoint eval due to throttle secs (%s secs).", self._spec.throttle_secs)

    def end(self, session: Session, global_step: int) -> None:
        if not session.interrupted and global_step != self._timer.last_triggered_step():
            self._evaluate(global_step, session)

    def _evaluate(self, global_step: int, session: Session | None = None) -> None:
        self._timer.update_last_triggered_step(global_step)
        with self._exchange() as exchange:
            path = exchange.from_first("what is evaluated", self._estimator.latest_checkpoint())
        if path is None or path == self._evaluated:
            raise RuntimeError(
                f"There was no new checkpoint after the training. The latest one in {self._estimator.model_dir} is "
                f"{path}, at global step {global_step}. A CheckpointSaverHook of yours must write to model_dir: leave "
                "out its checkpoint_dir."
            )
        self._evaluated = path
        self._due.note(global_step)
        try:
            self._evaluate_and_export(global_step, path, session)
        except Exception:
            self._due.done()  # it was tried; the next call does not try it again, as in TensorFlow
            raise

    def _evaluate_and_export(self, global_step: int, path: str, session: Session | None) -> None:
        spec = self._spec
        try:
            metrics = self._estimator.evaluate(spec.input_fn, steps=spec.steps, hooks=spec.hooks, name=spec.name)
        except Interrupted:
            _logger.warning(
                "A signal ended the evaluation of step %d, which has no results. If train_and_evaluate is called "
                "again, it begins with it.",
                global_step,
            )
            return
        self.metrics = metrics
        with self._exchange() as exchange:
            exports = exchange.from_first(
                "exports", self._export(path, metrics, session) if exchange.is_first else None
            )
        if exports is None:
            return
        self.exports = exports
        self._due.done()

    def _export(self, path: str, metrics: Metrics, session: Session | None) -> list[object] | None:
        """What the exporters return, of several processes in process 0; None if a signal ends it."""
        spec = self._spec
        is_final = self._max_steps is not None and metrics["global_step"] >= self._max_steps
        exports = []
        assert isinstance(spec.exporters, tuple)
        for exporter in spec.exporters:
            if session is not None and session.interrupted:
                step = metrics["global_step"]
                _logger.warning("A signal ended the exports of step %d before that of %r.", step, exporter.name)
                return None
            try:
                exported = exporter.export(
                    estimator=self._estimator,
                    export_path=join(self._estimator.model_dir, "export", exporter.name),
                    checkpoint_path=path,
                    eval_result=metrics,
                    is_the_final_export=is_final,
                )
            except BaseException as error:
                error.add_note(f"raised by exporter {exporter.name!r} ({type(exporter).__name__})")
                raise
            exports.append(exported)
        return exports

    def _exchange(self) -> Exchange:
        return open_exchange("train_and_evaluate", timeout_secs=self._estimator.config.process_timeout_secs)
