"""What happens when a loss is NaN: the run ends, or, where the user allows it, goes on with warnings."""

import logging

import numpy as np

from jaxspec._src.base.errors import NanLossDuringTrainingError

_logger = logging.getLogger("jaxspec")


class NanLosses:
    """Checks the loss of every step.

    Args:
      fail: whether a NaN ends the run.
    """

    def __init__(self, *, fail: bool) -> None:
        self._fail = fail
        self._count = self._next_warning = 0
        self.error: NanLossDuringTrainingError | None = None
        """The error to end the run with, after a NaN that ends it."""

    def check(self, first: int, losses: np.ndarray) -> np.ndarray:
        """The losses that count: those up to the first NaN where it ends the run, else all.

        Args:
          first: the global step of the first of `losses`, counted from 0.
          losses: the losses of consecutive steps, on the host.
        """
        bad = np.flatnonzero(np.isnan(losses.astype(np.float32)))
        if not bad.size:
            return losses
        step = first + int(bad[0])
        if self._fail:
            self.error = NanLossDuringTrainingError(
                f"NaN loss during training: at step {step} (counted from 0). The latest checkpoint, if there is one, "
                "is from before it. Lower the learning rate, clip the gradients, or look at that batch. Where the "
                "optimizer leaves such steps out (optax.apply_if_finite), RunConfig(fail_on_nan_loss=False) goes on."
            )
            return losses[: bad[0] + 1]
        self._count += int(bad.size)
        # At the first one, and then each time that there are ten times as many.
        if self._count >= self._next_warning:
            self._next_warning = 10 * self._count
            _logger.warning(
                "NaN loss at step %d (counted from 0), %d so far in this run. Training goes on, as "
                "RunConfig(fail_on_nan_loss=False) says; a checkpoint is still refused if a weight is not finite.",
                *(step, self._count),
            )
        return losses

    def warn_of_count(self, steps: int) -> None:
        """Warns, at the end of a run of `steps` steps, of the number of NaN losses."""
        if self._count:
            _logger.warning("%d of the %d steps of this run had a NaN loss.", self._count, steps)
