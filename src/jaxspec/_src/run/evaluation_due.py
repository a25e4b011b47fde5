"""Keeps on disk which checkpoint is to be evaluated, so that a run that is killed before that makes up for it later."""

import logging
import os

_logger = logging.getLogger("jaxspec")
_NAME = "evaluation_due"


class EvaluationDue:
    """A file with the step to evaluate. It exists from before its checkpoint is written until after its last export.

    Args:
      eval_dir: the directory of the evaluation's event files.
    """

    def __init__(self, eval_dir: str) -> None:
        self._path = os.path.join(eval_dir, _NAME)

    def step(self) -> int | None:
        """The global step whose checkpoint is to be evaluated, or None."""
        try:
            with open(self._path, encoding="utf-8") as file:
                return int(file.read())
        except (OSError, ValueError):  # there is none, or it was cut short: then its checkpoint had not been begun
            return None

    def note(self, step: int) -> None:
        """Notes that the checkpoint of the global step `step` is to be evaluated. Warns if the file cannot be written."""
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
        """Removes the file: the evaluation and its exports are done, or will not be made."""
        try:
            os.remove(self._path)
        except FileNotFoundError:
            pass
        except OSError as error:
            _logger.warning("%s cannot be removed (%s): the next run evaluates that step again.", self._path, error)
