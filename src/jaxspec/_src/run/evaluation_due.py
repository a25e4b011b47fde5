"""Which checkpoint is to be evaluated: a note on disk, so that a run that is killed before it has done so does it later."""

import logging
import os

_logger = logging.getLogger("jaxspec")
_NAME = "evaluation_due"


class EvaluationDue:
    """The note of one evaluation. It is there from before its checkpoint is written until its last export is.

    Args:
      eval_dir: where the evaluation's event files go.
    """

    def __init__(self, eval_dir: str) -> None:
        self._path = os.path.join(eval_dir, _NAME)

    def step(self) -> int | None:
        """The global step whose checkpoint is to be evaluated, or None."""
        try:
            with open(self._path, encoding="utf-8") as file:
                return int(file.read())
        except (OSError, ValueError):  # none, or one that was cut short: then its checkpoint had not been begun
            return None

    def note(self, step: int) -> None:
        """Notes that the checkpoint of a global step is to be evaluated. One that cannot be written is a warning."""
        try:
            os.makedirs(os.path.dirname(self._path), exist_ok=True)
            with open(f"{self._path}.tmp", "w", encoding="utf-8") as file:
                file.write(str(step))
            os.replace(f"{self._path}.tmp", self._path)
        except OSError as error:
            _logger.warning(
                "%s cannot be written (%s): if this run is killed before step %d is evaluated, the next one will not do it.",
                *(self._path, error, step),
            )

    def done(self) -> None:
        """The evaluation and its exports are done, or not to be."""
        try:
            os.remove(self._path)
        except FileNotFoundError:
            pass
        except OSError as error:
            _logger.warning("%s cannot be removed (%s): the next run evaluates that step again.", self._path, error)
