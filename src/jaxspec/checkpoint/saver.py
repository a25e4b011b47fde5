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
_KEPT = "kept"
"""The file that marks a checkpoint as one to keep for ever."""


class Saver:
    """Writes the checkpoints of one estimator into a directory, one at a time, in the background.

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
        self._own_steps: set[int] = set()
        self._started = clock()
        self._writing: Any = None

    def claim(self, step: int) -> None:
        """Says that a checkpoint of `step`, if it is there, holds the state of this run: it was restored from it."""
        self._own_steps.add(step)

    def save(self, state: TrainState, position: str | None = None) -> None:
        """Writes a checkpoint of the state, unless it has one of this step; returns when the state may be donated.

        A checkpoint of another run is replaced, with a warning.

        Args:
          state: on one device.
          position: of the input, encoded, or None.

        Raises:
          NanLossDuringTrainingError: if a weight is not finite; nothing is written then.
        """
        self.wait()
        step = int(state.step)
        path = checkpoint_path(self.model_dir, step)
        exists = step in checkpoint_steps(self.model_dir)
        if exists and step in self._own_steps:
            return
        self._refuse_non_finite(state, step)
        if exists:
            _logger.warning("The checkpoint %s is of another run; it is replaced.", path)
        _logger.info("Saving checkpoint for %d into %s.", step, path)
        os.makedirs(self.model_dir, exist_ok=True)
        self._own_steps.add(step)
        self._writing = write_async(path, state, position)

    def wait(self) -> None:
        """Waits until the last checkpoint is whole, and removes those that are too old."""
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        writing.result()
        self._remove_old()

    def _refuse_non_finite(self, state: TrainState, step: int) -> None:
        """Weights must be finite; other collections may hold infinities (a running minimum, a mask), but no NaN."""
        leaves = {
            name: leaf
            for name, leaf in named_leaves(state.variables).items()
            if jnp.issubdtype(leaf.dtype, jnp.inexact)
        }
        finite, no_nan = jax.device_get(_health(list(leaves.values())))
        bad = [
            name
            for name, is_finite, is_number in zip(leaves, finite, no_nan, strict=True)
            if not (is_finite if name.startswith("params/") else is_number)
        ]
        if bad:
            when = f"After step {step - 1} (counted from 0)" if step else "Before the first step"
            raise NanLossDuringTrainingError(
                f"{when} these variables are not finite: {', '.join(bad)}. No checkpoint was written; the latest, if there "
                "is one, is from before. Lower the learning rate, clip the gradients, or look at init_fn."
            )

    def _remove_old(self) -> None:
        if not self._keep_max:
            return
        paths = [checkpoint_path(self.model_dir, step) for step in checkpoint_steps(self.model_dir)]
        kept = [path for path in paths if os.path.exists(os.path.join(path, _KEPT))]
        others = [path for path in paths if path not in kept]
        last_kept = max((os.path.getmtime(os.path.join(path, _KEPT)) for path in kept), default=self._started)
        for path in others[: -self._keep_max]:
            if self._clock() - last_kept >= self._keep_seconds:
                last_kept = self._clock()
                with open(os.path.join(path, _KEPT), "w", encoding="utf-8") as file:
                    file.write("kept by keep_checkpoint_every_n_hours\n")
            else:
                # Renamed first, so that a reader never sees half of it.
                shutil.rmtree(_renamed(path), ignore_errors=True)


@jax.jit
def _health(leaves: list[jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
    return [jnp.isfinite(x).all() for x in leaves], [~jnp.isnan(x).any() for x in leaves]


def _renamed(path: str) -> str:
    gone = f"{path}.removed"
    os.replace(path, gone)
    return gone
