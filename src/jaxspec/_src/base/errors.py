"""The errors of the library that a user may want to catch."""


class NanLossDuringTrainingError(RuntimeError):
    """The loss, or a weight about to be saved, is not finite. The newest checkpoint is from before that."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else "NaN loss during training."


class DamagedCheckpointError(ValueError):
    """A checkpoint is not as it was written."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(
            f"the checkpoint {path} is damaged: {problem}. Remove it, or restore it from a copy; the checkpoint "
            "before it may be used."
        )


class OtherProcessError(RuntimeError):
    """Another process of this run has failed, or does not answer. The message names it, and where it was."""


class Interrupted(KeyboardInterrupt):
    """Raised in an evaluation or a prediction that is made within a training, when a signal ends the training."""
