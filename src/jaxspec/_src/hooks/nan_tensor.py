"""NanTensorHook: stops when a tensor that the user names is NaN. (For the loss: run/nan_losses.py.)"""

import logging

import numpy as np

from jaxspec._src.base.errors import NanLossDuringTrainingError
from jaxspec._src.hooks.session import refuse_arrays
from jaxspec._src.spec.hook import SessionRunArgs, SessionRunContext, SessionRunHook, SessionRunValues

_logger = logging.getLogger("jaxspec")


class NanTensorHook(SessionRunHook):
    """Ends the session when a tensor is NaN at the end of a loop.

    Training itself checks the loss of every step; this is for other tensors. It fetches a value at every loop, so the
    devices wait for the host.

    Args:
      loss_tensor: a fetch name (see `Session`).
      fail_on_nan_loss: whether to raise NanLossDuringTrainingError; False ends the session without an error.
    """

    after_host_calls = False

    def __init__(self, loss_tensor: str, fail_on_nan_loss: bool = True) -> None:
        refuse_arrays("NanTensorHook: loss_tensor", loss_tensor)
        self._name, self._fail = loss_tensor, fail_on_nan_loss

    def before_run(self, run_context: SessionRunContext) -> SessionRunArgs:
        return SessionRunArgs(self._name)

    def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        if not np.isnan(run_values.results).any():
            return
        message = f"Model diverged with {self._name} = NaN."
        if self._fail:
            _logger.error(message)
            raise NanLossDuringTrainingError(
                f"NaN loss during training: {self._name} is NaN at the end of the loop of steps "
                f"{run_context.first_step} to {run_context.last_step} (counted from 0)."
            )
        _logger.warning(message)
        run_context.request_stop()
