"""CheckpointSaverHook: when checkpoints are written. Its listeners: user code that runs around every checkpoint."""

import os
from collections.abc import Iterable, Sequence

from jaxspec._src.base.paths import absolute_path
from jaxspec._src.base.types import Clock
from jaxspec._src.base.validate import check_methods
from jaxspec._src.hooks.session import TrainingSession
from jaxspec._src.hooks.timer import SecondOrStepTimer, check_one_of
from jaxspec._src.spec.hook import SessionRunContext, SessionRunHook, SessionRunValues


class CheckpointSaverListener:
    """Base class of listeners. Every method does nothing; override what you need. All run on the host.

    `session` is the session that hooks get; `global_step` is the step of the checkpoint: the number of updates made.
    """

    def begin(self) -> None:
        """Called once, before the state exists."""

    def before_save(self, session: TrainingSession, global_step: int) -> None:
        """Called before a checkpoint is written, when host_call has run for every step before it."""

    def after_save(self, session: TrainingSession, global_step: int) -> bool | None:
        """Called when the checkpoint is complete. True ends training, except at the checkpoints at the start and at the
        end."""
        return None

    def end(self, session: TrainingSession, global_step: int) -> None:
        """Called after the last checkpoint of a run that ends without an error."""


def check_listeners(listeners: object) -> tuple[CheckpointSaverListener, ...]:
    """The listeners as a tuple, each once. TypeError names a value that is not a listener, or a method with a wrong
    signature."""
    if listeners is None:
        return ()
    if isinstance(listeners, CheckpointSaverListener) or not isinstance(listeners, Iterable):
        raise TypeError(
            f"saving_listeners must be a list of CheckpointSaverListener, given: {listeners!r}. Write "
            "saving_listeners=[...]."
        )
    checked = tuple({id(listener): listener for listener in listeners}.values())
    for listener in checked:
        if not isinstance(listener, CheckpointSaverListener):
            raise TypeError(
                f"saving_listeners must be a list of CheckpointSaverListener, given: {listener!r}. Derive it from "
                "jaxspec.hooks.CheckpointSaverListener and pass an instance."
            )
        check_methods(listener, CheckpointSaverListener)
    return checked


class CheckpointSaverHook(SessionRunHook):
    """Writes a checkpoint at the start of training, every so many steps or seconds after the last one, and at the end.

    Training adds one itself, for `RunConfig.save_checkpoints_steps` or `save_checkpoints_secs`. A hook of this class
    replaces it. Loops end exactly where a checkpoint is due by steps, and soon after one is due by seconds. `RunConfig`
    sets how many checkpoints are kept.

    Args:
      checkpoint_dir: the directory of the checkpoints; None: the model_dir. The estimator restores only those in its
        model_dir.
      save_secs, save_steps: exactly one of them.
      saver, checkpoint_basename, scaffold, save_graph_def: arguments of TensorFlow. Leave them out.
      listeners: `CheckpointSaverListener`s.
      clock: seconds since some start; None: that of the session.
    """

    after_host_calls = False

    def __init__(
        self,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        save_secs: float | None = None,
        save_steps: int | None = None,
        saver: object = None,
        checkpoint_basename: str = "model.ckpt",
        scaffold: object = None,
        listeners: object = None,
        save_graph_def: bool = True,
        *,
        clock: Clock | None = None,
    ) -> None:
        if saver is not None and scaffold is not None:
            raise ValueError("You cannot provide both saver and scaffold. Neither means anything here: leave both out.")
        check_one_of(save_secs, save_steps, ("save_secs", "save_steps"))
        for name, given, only in (
            ("saver", saver, None),
            ("scaffold", scaffold, None),
            ("checkpoint_basename", checkpoint_basename, "model.ckpt"),
        ):
            if given != only:
                raise ValueError(f"CheckpointSaverHook: {name} must be {only!r} here, got {given!r}; leave it out.")
        self._given_dir = None if checkpoint_dir is None else absolute_path(checkpoint_dir)
        self._steps = save_steps
        self._clock = clock
        self._timer = SecondOrStepTimer(save_secs, save_steps)
        self._own_listeners = self._listeners = check_listeners(listeners)

    def start_saving(self, model_dir: str, listeners: Sequence[object] = ()) -> str:
        """Prepares for one training, whose listeners are called after the hook's own; returns the directory of
        checkpoints."""
        self._checkpoint_dir = self._given_dir or absolute_path(model_dir)
        self._listeners = check_listeners((*self._own_listeners, *listeners))
        return self._checkpoint_dir

    def begin(self) -> None:
        self._timer.reset()
        self._call_listeners("begin")

    def after_create_session(self, session: TrainingSession, coord: None) -> None:
        if not hasattr(session, "save_checkpoint"):
            raise TypeError("CheckpointSaverHook belongs to training; leave it out of evaluate and predict.")
        self._timer.clock = self._clock or session.clock
        self._save(session)

    def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        is_due = self._timer.should_trigger_for_step(run_context.session.global_step)
        if is_due and self._save(run_context.session):
            run_context.request_stop()

    def end(self, session: TrainingSession) -> None:
        step = session.global_step
        if step != self._timer.last_triggered_step():
            self._save(session)
        self._call_listeners("end", session, step)

    def next_step(self, global_step: int) -> int | None:
        saved = self._timer.last_triggered_step()
        return None if self._steps is None or saved is None else saved + self._steps

    def wants_loop_end(self, global_step: int) -> bool:
        return self._steps is None and self._timer.should_trigger_for_step(global_step)

    def _save(self, session: TrainingSession) -> bool:
        """Writes a checkpoint; returns whether a listener asks to stop."""
        step = session.global_step
        session.finish_steps()
        self._call_listeners("before_save", session, step)
        session.save_checkpoint(self._checkpoint_dir)
        self._timer.update_last_triggered_step(step)
        if self._listeners:
            session.finish_checkpoint(self._checkpoint_dir)
        return self._call_listeners("after_save", session, step)

    def _call_listeners(self, method: str, *args: object) -> bool:
        """Calls a method of every listener; returns whether one returned something true. An exception names its
        listener."""
        is_true = False
        for listener in self._listeners:
            try:
                is_true = bool(getattr(listener, method)(*args)) or is_true
            except BaseException as error:
                error.add_note(f"raised by {type(listener).__name__}.{method}")
                raise
        return is_true
