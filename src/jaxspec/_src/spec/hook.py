"""The hook contract: five methods called around every loop of steps."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from jaxspec._src.base.types import PyTree
from jaxspec._src.base.validate import check_methods


class SessionRunArgs(NamedTuple):
    """What a hook's `before_run` asks for: a fetch name, or a list, tuple or dict of fetch names (any nesting)."""

    fetches: PyTree


class SessionRunValues(NamedTuple):
    """What `after_run` gets: NumPy arrays in the structure that `before_run` asked for, or None if it asked for
    nothing."""

    results: PyTree


class SessionRunContext:
    """Passed to `before_run` and `after_run`.

    `session` is the `Session`, in training the `TrainingSession`. `first_step` and `last_step` are the global steps of
    the first and last update of this loop, counted from 0, inclusive; if the input ends or a signal comes within the
    loop, `last_step` is corrected before `after_run`. In evaluation and prediction, where one batch is one loop, both
    are the number of the batch, counted from 0.
    """

    # Any, as in the methods of SessionRunHook: each hook may name the Protocol that it needs, of two above this layer.
    def __init__(self, session: Any, first_step: int, last_step: int) -> None:
        self.session = session
        self.first_step = first_step
        self.last_step = last_step
        self._stop_requested = False

    @property
    def stop_requested(self) -> bool:
        """Whether `request_stop` was called."""
        return self._stop_requested

    def request_stop(self) -> None:
        """Ends the session after this loop, without an error: `end` is called, a checkpoint is written."""
        self._stop_requested = True


class SessionRunHook:
    """Base class of hooks. Every method does nothing; override those that you need. All run on the host.

    A StopIteration raised in `before_run` or `after_run` ends the session without an error, as the end of the input
    does.
    Any other exception ends it with that error: `abort` is called then, and `end` is not.
    """

    after_host_calls: bool = True
    """Whether `after_run` waits until host_call has run for all steps of the loop, if there is a host_call. Set it to
    False
    in a hook that does not depend on host_call: the devices then continue."""

    def start_saving(self, model_dir: str, listeners: Sequence[object]) -> str | None:
        """Called in training before `begin`. A hook that writes checkpoints returns the directory: the one it
        passes to `session.save_checkpoint`.

        Training adds no `CheckpointSaverHook` then. A training that is interrupted saves to that directory, too.

        Args:
          model_dir: that of the estimator.
          listeners: the `saving_listeners` of train, for the first hook that returns a directory; () for the others.
        """
        return None

    def begin(self) -> None:
        """Called once, before the state exists."""

    def after_create_session(self, session: Any, coord: None) -> None:
        """Called once when the state is made or restored, before the first loop. `coord` is None."""

    def before_run(self, run_context: SessionRunContext) -> SessionRunArgs | None:
        """Called before each loop of steps."""
        return None

    def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        """Called after each loop of steps: when they are dispatched or, if the hook asked for a value, done.

        If the input ends before a loop's first batch, its `before_run` has no `after_run`.
        """

    def end(self, session: Any) -> None:
        """Called when the session ends without an error."""

    def abort(self) -> None:
        """Called instead of `end` when the session ends with an error: stop what was started. TensorFlow has no such
        call."""

    def next_step(self, global_step: int) -> int | None:
        """A global step after `global_step` at which a training loop must end for this hook; None: anywhere."""
        return None

    def wants_loop_end(self, global_step: int) -> bool:
        """Whether the current training loop must end at `global_step`, since something is due by the clock.

        Called between two dispatches of a loop, and some times a second during a wait for the input.
        """
        return False


def check_hooks(hooks: object, *, role: str = "hooks") -> tuple[SessionRunHook, ...]:
    """The hooks as a tuple. TypeError names the one that is no SessionRunHook instance, or has a wrong signature."""
    if hooks is None:
        return ()
    if isinstance(hooks, SessionRunHook):
        raise TypeError(f"{role} must be a list of SessionRunHook instances, given one: {hooks!r}; write [{role}].")
    if not isinstance(hooks, Iterable):
        raise TypeError(f"{role} must be a list of SessionRunHook instances, given: {hooks!r}.")
    checked: tuple[SessionRunHook, ...] = tuple(hooks)
    for hook in checked:
        if not isinstance(hook, SessionRunHook):
            kind = f", the class {hook.__name__} itself; write {hook.__name__}()" if isinstance(hook, type) else ""
            raise TypeError(f"All hooks must be SessionRunHook instances, given in {role}: {hook!r}{kind}")
        check_methods(hook, SessionRunHook)
    return checked
