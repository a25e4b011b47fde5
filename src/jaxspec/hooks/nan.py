"""The error of a run that has diverged."""


class NanLossDuringTrainingError(RuntimeError):
    """The loss, or a weight about to be saved, is not finite. The newest checkpoint is from before that."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else "NaN loss during training."
