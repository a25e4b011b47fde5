"""Losses that are NaN: the end of a run, or, where the user lets it go on, a count."""

import logging

import numpy as np

from jaxspec._src.base.errors import NanLossDuringTrainingError

_logger = logging.getLogger("jaxspec")


class LossCheck:
    """Looks at the loss of every step.

    Args:
      fail: whether a NaN ends the run.
    """

    def __init__(self, *, fail: bool) -> None:
        self._fail = fail
        self._count = 0
        self._told = 0
        self.error: NanLossDuringTrainingError | None = None
        """What the run ends with, once there was a NaN and it is not to go on."""

    def look(self, first: int, losses: np.ndarray) -> np.ndarray:
        """The losses that count: those up to the first NaN where it ends the run, else all.

        Args:
          first: the global step of the first of `losses`, counted from 0.
        """
        bad = np.flatnonzero(np.isnan(losses.astype(np.float32)))
        if not bad.size:
            return losses
        step = first + int(bad[0])
        if self._fail:
            self.error = NanLossDuringTrainingError(
                f"NaN loss during training: at step {step} (counted from 0). The latest checkpoint, if there is one, is "
                "from before it. Lower the learning rate, clip the gradients, or look at that batch. Where the optimizer "
                "leaves such steps out (optax.apply_if_finite), RunConfig(fail_on_nan_loss=False) goes on."
            )
            return losses[: bad[0] + 1]
        self._count += int(bad.size)
        # At the first one, and then each time that there are ten times as many.
        if self._count >= 10 * self._told:
            self._told = self._count
            _logger.warning(
                "NaN loss at step %d (counted from 0), %d so far in this run. Training goes on, as RunConfig(fail_on_nan_loss=False) "
                "says; a checkpoint is still refused if a weight is not finite.",
                *(step, self._count),
            )
        return losses

    def tell(self, steps: int) -> None:
        """Says at the end of a run of so many steps how many there were."""
        if self._count:
            _logger.warning("%d of the %d steps of this run had a NaN loss.", self._count, steps)
