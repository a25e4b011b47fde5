"""Listeners: user code that runs around every checkpoint."""

from collections.abc import Iterable

from jaxspec._src.base.validate import check_methods
from jaxspec._src.hooks.session import TrainingSession


class CheckpointSaverListener:
    """Base class of listeners. Every method does nothing; override what you need. All run on the host.

    `session` is the session that hooks get; `global_step` is the step of the checkpoint: the number of updates made.
    """

    def begin(self) -> None:
        """Called once, before the state exists."""

    def before_save(self, session: TrainingSession, global_step: int) -> None:
        """Called before a checkpoint is written, when host_call has run for every step before it."""

    def after_save(self, session: TrainingSession, global_step: int) -> bool | None:
        """Called when the checkpoint is complete. True ends training, except at the checkpoints at the start and at the end."""
        return None

    def end(self, session: TrainingSession, global_step: int) -> None:
        """Called after the last checkpoint of a run that ends without an error."""


def check_listeners(listeners: object) -> tuple[CheckpointSaverListener, ...]:
    """The listeners as a tuple, each once. TypeError names a value that is not a listener, or a method with a wrong signature."""
    if listeners is None:
        return ()
    if isinstance(listeners, CheckpointSaverListener) or not isinstance(listeners, Iterable):
        raise TypeError(
            f"saving_listeners must be a list of CheckpointSaverListener, given: {listeners!r}. Write saving_listeners=[...]."
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
