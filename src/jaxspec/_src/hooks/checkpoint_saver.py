"""When checkpoints are written."""

import os
import time
from collections.abc import Callable
from typing import Any

from jaxspec._src.hooks.listener import CheckpointSaverListener, check_listeners
from jaxspec._src.hooks.timer import SecondOrStepTimer, check_one_of
from jaxspec._src.spec.hook import SessionRunContext, SessionRunHook, SessionRunValues


class CheckpointSaverHook(SessionRunHook):
    """Writes a checkpoint at the start of training, every so many steps or seconds after the last one, and at the end.

    Training adds one by itself, after `RunConfig.save_checkpoints_steps` or `_secs`; given as a hook, it replaces that.
    Loops end exactly where a checkpoint is due by steps, and soon after one is due by seconds. How many are kept is for `RunConfig` to say.

    Args:
      checkpoint_dir: where; None: the model_dir. The estimator finds only those in its model_dir.
      save_secs, save_steps: exactly one of them.
      saver, checkpoint_basename, scaffold, save_graph_def: TensorFlow's; only the defaults mean anything here.
      listeners: `CheckpointSaverListener`s.
      clock: seconds since some start.
    """

    after_host_calls = False

    def __init__(
        self,
        checkpoint_dir: Any = None,
        save_secs: float | None = None,
        save_steps: int | None = None,
        saver: Any = None,
        checkpoint_basename: str = "model.ckpt",
        scaffold: Any = None,
        listeners: Any = None,
        save_graph_def: bool = True,
        *,
        clock: Callable[[], float] = time.monotonic,
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
        self._given_dir = None if checkpoint_dir is None else os.path.abspath(os.fspath(checkpoint_dir))
        self._steps = save_steps
        self._timer = SecondOrStepTimer(save_secs, save_steps, clock=clock)
        self._own_listeners = self._listeners = check_listeners(listeners)

    def start(self, model_dir: str, listeners: tuple[CheckpointSaverListener, ...] = ()) -> str:
        """Prepares for one run, with its listeners behind the hook's own; returns where checkpoints go."""
        self._checkpoint_dir = self._given_dir or os.path.abspath(model_dir)
        self._listeners = check_listeners((*self._own_listeners, *listeners))
        return self._checkpoint_dir

    def begin(self) -> None:
        self._timer.reset()
        for listener in self._listeners:
            _call(listener, "begin")

    def after_create_session(self, session: Any, coord: Any) -> None:
        self._save(session)

    def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        is_due = self._timer.should_trigger_for_step(run_context.session.global_step)
        if is_due and self._save(run_context.session):
            run_context.request_stop()

    def end(self, session: Any) -> None:
        step = session.global_step
        if step != self._timer.last_triggered_step():
            self._save(session)
        for listener in self._listeners:
            _call(listener, "end", session, step)

    def next_step(self, global_step: int) -> int | None:
        saved = self._timer.last_triggered_step()
        return None if self._steps is None or saved is None else saved + self._steps

    def wants_loop_end(self, global_step: int) -> bool:
        return self._steps is None and self._timer.should_trigger_for_step(global_step)

    def _save(self, session: Any) -> bool:
        """Writes a checkpoint; returns whether a listener asks to stop."""
        if not hasattr(session, "save_checkpoint"):
            raise TypeError("CheckpointSaverHook belongs to training; leave it out of evaluate and predict.")
        step = session.global_step
        session.finish_steps()
        for listener in self._listeners:
            _call(listener, "before_save", session, step)
        session.save_checkpoint(self._checkpoint_dir)
        self._timer.update_last_triggered_step(step)
        if self._listeners:
            session.finish_checkpoint(self._checkpoint_dir)
        answers = [_call(listener, "after_save", session, step) for listener in self._listeners]
        return any(answers)


def _call(listener: CheckpointSaverListener, method: str, *args: Any) -> Any:
    try:
        return getattr(listener, method)(*args)
    except BaseException as error:
        error.add_note(f"raised by {type(listener).__name__}.{method}")
        raise
