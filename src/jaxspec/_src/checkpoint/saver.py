"""Writing checkpoints of one run, and removing old ones."""

import logging
import os
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxspec._src.base.arrays import named_leaves
from jaxspec._src.base.errors import NanLossDuringTrainingError
from jaxspec._src.checkpoint.directory import checkpoint_path, checkpoint_steps
from jaxspec._src.checkpoint.leftovers import remove, remove_leftovers, removed_path
from jaxspec._src.checkpoint.manifest import KEPT
from jaxspec._src.checkpoint.store import check_names
from jaxspec._src.checkpoint.writing import Writing
from jaxspec._src.step.state import TrainState

_logger = logging.getLogger("jaxspec")


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
        self._writing: tuple[int, Writing] | None = None

    def begin(self, step: int | None) -> None:
        """Begins a run, and removes what killed runs left.

        Args:
          step: a checkpoint of this step, if it is there, holds the state that the run begins with, and later ones do not;
            None: nothing is known.
        """
        if step is not None:
            self._own_steps = {own for own in self._own_steps if own < step} | {step}
        remove_leftovers(self.model_dir)

    def save(self, state: TrainState, position: str | None = None) -> None:
        """Begins a checkpoint of the state, unless it has one of this step; returns when the state may be donated.

        One that is still being written is waited for before. A checkpoint of another run is replaced, with a warning. An
        interrupt leaves what is being written alone: it goes on, and `wait` waits for it.

        Args:
          state: on one device.
          position: of the input, encoded, or None.

        Raises:
          NanLossDuringTrainingError: if a weight is not finite; nothing is written then.
          ValueError: naming two leaves that a checkpoint could not tell apart; nothing is written then.
          OSError: if the checkpoint before could not be written.
        """
        self.wait()
        step = int(state.step)
        path = checkpoint_path(self.model_dir, step)
        exists = step in checkpoint_steps(self.model_dir)
        if exists and step in self._own_steps:
            return
        check_names(state)
        self._refuse_non_finite(state, step)
        if exists:
            _logger.warning("The checkpoint %s is of another run; it is replaced.", path)
        _logger.info("Saving checkpoint for %d into %s.", step, path)
        self._writing = (step, Writing(path, step, state, position))
        self._writing[1].begin()

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until the last checkpoint is whole, at most `timeout` seconds, and removes those that are too old.

        Returns:
          Whether it is whole. After an interrupt or a timeout it may be waited for again.

        Raises:
          OSError: if it could not be written; once.
        """
        if self._writing is None:
            return True
        step, writing = self._writing
        try:
            if not writing.wait(timeout):
                return False
        except OSError:
            self._writing = None
            raise
        self._own_steps.add(step)
        self._remove_old()
        self._writing = None
        return True

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
        # Later ones are damaged or of another run: they do not take the place of ours.
        newest = max(self._own_steps)
        steps = [step for step in checkpoint_steps(self.model_dir) if step <= newest]
        paths = [checkpoint_path(self.model_dir, step) for step in steps]
        kept = [path for path in paths if os.path.exists(os.path.join(path, KEPT))]
        others = [path for path in paths if path not in kept]
        last_kept = max((os.path.getmtime(os.path.join(path, KEPT)) for path in kept), default=self._started)
        for path in others[: -self._keep_max]:
            if self._clock() - last_kept >= self._keep_seconds:
                last_kept = self._clock()
                with open(os.path.join(path, KEPT), "w", encoding="utf-8") as file:
                    file.write("kept by keep_checkpoint_every_n_hours\n")
            else:
                _remove_whole(path)


@jax.jit
def _health(leaves: list[jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
    return [jnp.isfinite(x).all() for x in leaves], [~jnp.isnan(x).any() for x in leaves]


def _remove_whole(path: str) -> None:
    """Removes a checkpoint at once for readers; a failure is a warning."""
    gone = removed_path(path)
    try:
        os.replace(path, gone)
    except OSError as error:
        _logger.warning("The checkpoint %s could not be removed: %s. Training goes on.", path, error)
    else:
        remove(gone)
