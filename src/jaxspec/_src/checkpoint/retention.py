"""Which old checkpoints are removed, and which are kept."""

import logging
import os

from jaxspec._src.base.types import Clock
from jaxspec._src.checkpoint.checksums import KEPT
from jaxspec._src.checkpoint.latest import checkpoint_path, checkpoint_steps
from jaxspec._src.checkpoint.leftovers import remove, removed_path

_logger = logging.getLogger("jaxspec")


class Retention:
    """Removes the old checkpoints of a directory.

    Args:
      model_dir: the directory.
      keep_max: how many are kept; None or 0 keeps all.
      keep_every_n_hours: how often one of the others is kept for ever.
      clock: seconds since the epoch, as `time.time` gives them.
    """

    def __init__(self, model_dir: str, keep_max: int | None, keep_every_n_hours: float, clock: Clock) -> None:
        self._model_dir = model_dir
        self._keep_max = keep_max
        self._keep_secs = keep_every_n_hours * 3600
        self._clock = clock
        self._started = clock()

    def remove_old(self, newest: int) -> None:
        """Removes all but the newest `keep_max` checkpoints up to the step `newest`. A failure is a warning."""
        if not self._keep_max:
            return
        # Later ones are damaged or of another run: they do not take the place of these.
        steps = [step for step in checkpoint_steps(self._model_dir) if step <= newest]
        paths = [checkpoint_path(self._model_dir, step) for step in steps]
        kept = [path for path in paths if os.path.exists(os.path.join(path, KEPT))]
        others = [path for path in paths if path not in kept]
        last_kept = max((os.path.getmtime(os.path.join(path, KEPT)) for path in kept), default=self._started)
        for path in others[: -self._keep_max]:
            if self._clock() - last_kept >= self._keep_secs:
                last_kept = self._clock()
                with open(os.path.join(path, KEPT), "w", encoding="utf-8") as file:
                    file.write("kept by keep_checkpoint_every_n_hours\n")
            else:
                _remove_checkpoint(path)


def _remove_checkpoint(path: str) -> None:
    """Removes a checkpoint. It is renamed first, so that for readers it is gone at once."""
    gone = removed_path(path)
    try:
        os.replace(path, gone)
    except OSError as error:
        _logger.warning("The checkpoint %s could not be removed: %s. Training goes on.", path, error)
    else:
        remove(gone)
