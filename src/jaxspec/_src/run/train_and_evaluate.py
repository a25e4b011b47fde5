"""train_and_evaluate: training with an evaluation at its checkpoints."""

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

from jaxspec._src.base.validate import check_number
from jaxspec._src.checkpoint.latest import checkpoint_step
from jaxspec._src.export.exporter import Exporter
from jaxspec._src.hooks.listener import CheckpointSaverListener, check_listeners
from jaxspec._src.hooks.timer import SecondOrStepTimer
from jaxspec._src.run.estimator import TPUEstimator
from jaxspec._src.run.evaluation_due import EvaluationDue
from jaxspec._src.run.signals import Interrupted
from jaxspec._src.run.validate import check_input_fn, check_steps
from jaxspec._src.spec.hook import SessionRunHook, check_hooks

_logger = logging.getLogger("jaxspec")


@dataclasses.dataclass(frozen=True)
class TrainSpec:
    """How `train_and_evaluate` trains. The arguments are those of `TPUEstimator.train`.

    Raises:
      ValueError, TypeError: for arguments that `train` would refuse.
    """

    input_fn: Callable[..., Any] = None  # type: ignore[assignment]  # left out, it is refused with a sentence
    max_steps: int | None = None
    """The global step to reach; None: to the end of the input."""
    hooks: Iterable[SessionRunHook] | None = None
    """Kept as a tuple."""
    saving_listeners: Iterable[CheckpointSaverListener] | None = None
    """Called before the evaluation of a checkpoint. Kept as a tuple."""
    resume_input: bool | None = None
    """Whether the input goes on at the saved position; None: if it is the input that the position came from."""

    def __post_init__(self) -> None:
        check_input_fn(self.input_fn)
        check_steps("Train", None, self.max_steps)
        object.__setattr__(self, "hooks", check_hooks(self.hooks))
        object.__setattr__(self, "saving_listeners", check_listeners(self.saving_listeners))


@dataclasses.dataclass(frozen=True)
class EvalSpec:
    """How `train_and_evaluate` evaluates. The first four arguments are those of `TPUEstimator.evaluate`.

    Raises:
      ValueError, TypeError: for arguments that `evaluate` would refuse, negative times, what is no exporter, and
        exporters without a name of their own.
    """

    input_fn: Callable[..., Any] = None  # type: ignore[assignment]  # left out, it is refused with a sentence
    steps: int | None = 100
    """Batches to take at most; None: all."""
    name: str | None = None
    hooks: Iterable[SessionRunHook] | None = None
    """Kept as a tuple."""
    exporters: Exporter | Iterable[Exporter] | None = None
    """Asked in this order after each evaluation. Kept as a tuple."""
    start_delay_secs: float = 120
    """For an evaluator in a process of its own; not used where training and evaluation take turns."""
    throttle_secs: float = 600
    """Seconds from the start of one evaluation to the next, at least. The last checkpoint is always evaluated."""

    def __post_init__(self) -> None:
        check_input_fn(self.input_fn)
        check_steps("Eval", self.steps, None)
        if self.name is not None and not isinstance(self.name, str):
            raise TypeError(f"`name` must be string, given: {self.name}. It names the directory eval_NAME.")
        object.__setattr__(self, "hooks", check_hooks(self.hooks))
        object.__setattr__(self, "exporters", _checked_exporters(self.exporters))
        for name in ("start_delay_secs", "throttle_secs"):
            check_number(name, getattr(self, name), minimum=0, required=True)


def train_and_evaluate(
    estimator: TPUEstimator,
    train_spec: TrainSpec,
    eval_spec: EvalSpec,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[dict[str, Any] | None, list[Any] | None]:
    """Trains, and evaluates at the checkpoints on the way: the state in memory, without reading them.

    The checkpoint at the start of the call is not evaluated, unless a run before this one was to evaluate it and was
    killed before that, or before its last export: then it is, first of all. After it, each one that comes
    `throttle_secs` or more after the start of the last evaluation is, and the last one always, unless Ctrl-C or SIGTERM
    ends the run. How often checkpoints are written is for `RunConfig` to say.

    Args:
      estimator: it goes on from its latest checkpoint.
      train_spec: if its max_steps is reached already, there is no training.
      eval_spec: its exporters are asked after each evaluation, with `is_the_final_export` true once max_steps is
        reached.
      clock: seconds since some start, for `throttle_secs`.

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
        "Start train and evaluate loop. The evaluate will happen after every checkpoint, but not within %s seconds of the last "
        "one. Checkpoint frequency is determined based on RunConfig arguments: save_checkpoints_steps %s or "
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

    def __init__(
        self, estimator: TPUEstimator, spec: EvalSpec, max_steps: int | None, clock: Callable[[], float]
    ) -> None:
        self._estimator, self._spec, self._max_steps, self._clock = estimator, spec, max_steps, clock
        self.metrics: dict[str, Any] | None = None
        self.exports: list[Any] | None = None
        self._timer = SecondOrStepTimer(every_secs=spec.throttle_secs, clock=clock)
        self._due = EvaluationDue(estimator.eval_dir(spec.name))
        self._evaluated: str | None = None

    def catch_up(self) -> None:
        """Evaluates and exports the latest checkpoint, if a run before this one was to, and was killed."""
        latest, step = self._estimator.latest_checkpoint(), self._due.step()
        if latest is None or step is None or checkpoint_step(latest) != step:
            return
        _logger.warning(
            "The run before this one ended before it had evaluated and exported %s: that is done now.", latest
        )
        self._evaluate(step)

    def begin(self) -> None:
        self._at_start = True

    def before_save(self, session: Any, global_step: int) -> None:
        if not self._at_start and not session.interrupted and self._is_due(global_step):
            self._due.note(global_step)

    def after_save(self, session: Any, global_step: int) -> None:
        if self._at_start:
            self._at_start = False
        elif session.interrupted:
            _logger.info("Stopped by a signal: step %d is saved, and not evaluated.", global_step)
        elif self._timer.should_trigger_for_step(global_step):
            self._evaluate(global_step, session)
        else:
            _logger.info("Skip the current checkpoint eval due to throttle secs (%s secs).", self._spec.throttle_secs)

    def end(self, session: Any, global_step: int) -> None:
        if not session.interrupted and global_step != self._timer.last_triggered_step():
            self._evaluate(global_step, session)

    def _is_due(self, global_step: int) -> bool:
        return global_step == self._max_steps or self._timer.should_trigger_for_step(global_step)

    def _evaluate(self, global_step: int, session: Any = None) -> None:
        self._timer.update_last_triggered_step(global_step)
        path = self._estimator.latest_checkpoint()
        if path is None or path == self._evaluated:
            raise RuntimeError(
                f"There was no new checkpoint after the training. The latest one in {self._estimator.model_dir} is {path}, at "
                f"global step {global_step}. A CheckpointSaverHook of yours must write to model_dir: leave out its "
                "checkpoint_dir."
            )
        self._evaluated = path
        self._due.note(global_step)
        try:
            self._evaluate_and_export(global_step, path, session)
        except Exception:
            self._due.done()  # it has been tried; the next call goes on from here, as in TensorFlow
            raise

    def _evaluate_and_export(self, global_step: int, path: str, session: Any) -> None:
        spec = self._spec
        try:
            metrics = self._estimator.evaluate(spec.input_fn, steps=spec.steps, hooks=spec.hooks, name=spec.name)
        except Interrupted:
            _logger.warning(
                "A signal ended the evaluation of step %d, which has no results. If train_and_evaluate is called again, it begins "
                "with it.",
                global_step,
            )
            return
        self.metrics = metrics
        is_final = self._max_steps is not None and metrics["global_step"] >= self._max_steps
        exports = []
        for exporter in _exporters(spec):
            if session is not None and session.interrupted:
                _logger.warning("A signal ended the exports of step %d before that of %r.", global_step, exporter.name)
                return
            exports.append(self._export(exporter, path, is_final))
        self.exports = exports
        self._due.done()

    def _export(self, exporter: Exporter, path: str, is_final: bool) -> Any:
        assert self.metrics is not None
        try:
            return exporter.export(
                estimator=self._estimator,
                export_path=os.path.join(self._estimator.model_dir, "export", exporter.name),
                checkpoint_path=path,
                eval_result=self.metrics,
                is_the_final_export=is_final,
            )
        except BaseException as error:
            error.add_note(f"raised by exporter {exporter.name!r} ({type(exporter).__name__})")
            raise


def _exporters(spec: EvalSpec) -> tuple[Exporter, ...]:
    assert isinstance(spec.exporters, tuple)
    return spec.exporters


def _checked_exporters(exporters: Any) -> tuple[Exporter, ...]:
    if exporters is None:
        return ()
    if isinstance(exporters, Exporter):
        exporters = (exporters,)
    checked: tuple[Any, ...] = tuple(exporters) if isinstance(exporters, Iterable) else (exporters,)
    for exporter in checked:
        if not isinstance(exporter, Exporter):
            raise TypeError(
                f"`exporters` must be an Exporter, an iterable of Exporter, or `None`, found {exporter!r}. Derive it from "
                "jaxspec.Exporter and pass an instance."
            )
    names = [exporter.name for exporter in checked]
    for name in names:
        if name is None or name == "":
            raise ValueError(
                f"An Exporter cannot have a name that is `None` or empty. All exporter names: {names}. Give it one, as in "
                "FinalExporter('final', ...): its exports go to MODEL_DIR/export/NAME."
            )
        if not isinstance(name, str):
            raise ValueError(f"An Exporter must have a string name. Given: {type(name)}, {name!r}.")
        if os.path.basename(name) != name or name in (os.curdir, os.pardir):
            raise ValueError(
                f"An Exporter's name must be that of one directory, given: {name!r}. Its exports go to MODEL_DIR/export/NAME."
            )
    if len(set(names)) < len(names):
        raise ValueError(
            f"`exporters` must have unique names. Such a name cannot be `None`. All exporter names: {names}. Each exports to "
            "MODEL_DIR/export/NAME: give each a name of its own."
        )
    return checked
