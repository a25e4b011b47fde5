"""A file that names the checkpoint to be evaluated, so that a run after a kill makes up for that evaluation."""

import logging

from jaxspec._src.base.files import read_file, remove, write_file
from jaxspec._src.base.paths import join
from jaxspec._src.device.processes import is_first_process

_logger = logging.getLogger("jaxspec")


class EvaluationDue:
    """A file with the step to evaluate, which process 0 writes.

    It exists from before its checkpoint is written until after its last export.

    Args:
      eval_dir: the directory of the evaluation's event files.
    """

    def __init__(self, eval_dir: str) -> None:
        self._path = join(eval_dir, "evaluation_due")

    def step(self) -> int | None:
        """The global step whose checkpoint is to be evaluated, or None."""
        try:
            return int(read_file(self._path))
        except (OSError, ValueError):  # there is none, or it was cut short: then its checkpoint had not been begun
            return None

    def note(self, step: int) -> None:
        """Notes that the checkpoint of the global step `step` is to be evaluated. Warns if the file cannot be
        written."""
        if not is_first_process():
            return
        try:
            write_file(self._path, str(step).encode())
        except OSError as error:
            _logger.warning(
                "%s cannot be written (%s): if this run is killed before step %d is evaluated, the next one will not "
                "do it.",
                *(self._path, error, step),
            )

    def done(self) -> None:
        """Removes the file: the evaluation and its exports are done, or will not be made."""
        if not is_first_process():
            return
        try:
            remove(self._path)
        except FileNotFoundError:
            pass
        except OSError as error:
            _logger.warning("%s cannot be removed (%s): the next run evaluates that step again.", self._path, error)
