"""Writing checkpoints of one run, and removing old ones."""

import logging
import os
import shutil
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..arrays import named_leaves
from ..hooks.nan import NanLossDuringTrainingError
from ..steps import TrainState
from .directory import checkpoint_path, checkpoint_steps
from .store import write_async

_logger = logging.getLogger("jaxspec")


class Saver:
    """Writes checkpoints into `model_dir`, one at a time, in the background.

    Args:
      model_dir: where.
      keep_max: how many are kept; None or 0: all.
      keep_every_n_hours: one of each such time is kept besides.
      clock: seconds since some start.
    """

    def __init__(
        self,
        model_dir: str,
        *,
        keep_max: int | None = 5,
        keep_every_n_hours: float = 10000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.model_dir = model_dir
        self._keep_max = keep_max
        self._keep_seconds = keep_every_n_hours * 3600
        self._clock = clock
        self._keep_next = clock() + self._keep_seconds
        self._kept_for_ever: set[int] = set()
        self._writing: Any = None

    def save(self, state: TrainState, position: Any = None) -> None:
        """Writes a checkpoint of the state, unless there is one of its step; returns when it may be donated.

        Args:
          state: on one device.
          position: of the input, JSON-serialisable or None.

        Raises:
          NanLossDuringTrainingError: if a weight is not finite; nothing is written then.
        """
        self.wait()
        step = int(state.step)
        if step in checkpoint_steps(self.model_dir):
            return
        self._refuse_non_finite(state, step)
        path = checkpoint_path(self.model_dir, step)
        _logger.info("Saving checkpoint for %d into %s.", step, path)
        os.makedirs(self.model_dir, exist_ok=True)
        self._writing = write_async(path, state, position)

    def wait(self) -> None:
        """Waits until the last checkpoint is whole, and removes those that are too old."""
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        writing.result()
        self._remove_old()

    def _refuse_non_finite(self, state: TrainState, step: int) -> None:
        leaves = {
            name: leaf
            for name, leaf in named_leaves(state.variables).items()
            if jnp.issubdtype(leaf.dtype, jnp.inexact)
        }
        finite = jax.device_get(_all_finite(list(leaves.values())))
        bad = [name for name, ok in zip(leaves, finite, strict=True) if not ok]
        if bad:
            raise NanLossDuringTrainingError(
                f"After step {step - 1} (counted from 0) these variables are not finite: {', '.join(bad)}. No checkpoint "
                f"was written; the latest is from before. Lower the learning rate, or clip the gradients."
            )

    def _remove_old(self) -> None:
        if not self._keep_max:
            return
        steps = [step for step in checkpoint_steps(self.model_dir) if step not in self._kept_for_ever]
        for step in steps[: -self._keep_max]:
            path = checkpoint_path(self.model_dir, step)
            if self._clock() >= self._keep_next:
                self._kept_for_ever.add(step)
                self._keep_next = self._clock() + self._keep_seconds
                continue
            # Renamed first, so that a reader never sees half of it.
            shutil.rmtree(_renamed(path), ignore_errors=True)


@jax.jit
def _all_finite(leaves: list[jax.Array]) -> list[jax.Array]:
    return [jnp.isfinite(x).all() for x in leaves]


def _renamed(path: str) -> str:
    gone = f"{path}.removed"
    os.replace(path, gone)
    return gone
