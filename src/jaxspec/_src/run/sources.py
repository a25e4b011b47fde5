"""Decides which state a call starts from: the one on the devices, a checkpoint, or a fresh one."""

import logging
import os
from typing import NamedTuple

import jax

from jaxspec._src.base.errors import DamagedCheckpointError
from jaxspec._src.base.paths import absolute_path
from jaxspec._src.checkpoint import latest, restore
from jaxspec._src.device.live_state import Lease, LiveState

_logger = logging.getLogger("jaxspec")


class Source(NamedTuple):
    """Which state a verb uses: the leased live one, else that of a checkpoint, else a fresh one."""

    live: Lease | None
    path: str | None
    """Of the checkpoint."""
    step: int
    """The number of updates that made the state."""

    @property
    def fresh(self) -> bool:
        """Whether it is neither the live state nor a stored one."""
        return self.live is None and self.path is None

    def position(self) -> str | None:
        """Where the training input goes on after this state; None: at its beginning."""
        if self.path is not None:
            return _position_of(self.path, restore.read_positions(self.path))
        # A state that was lost takes its position with it: a fresh one begins the input again.
        return None if self.live is None else self.live.position

    def close(self) -> None:
        """Ends the lease of a live state."""
        if self.live is not None:
            self.live.close()


def _position_of(path: str, positions: list[str | None]) -> str | None:
    """The position for the input of this process, of those that the processes had which wrote the checkpoint."""
    if len(positions) == jax.process_count():
        return positions[jax.process_index()]
    # They read the same number of batches. Where this number is all that a position says, it is good for any process.
    if len(set(positions)) == 1:
        return positions[0]
    _logger.warning(
        "The input begins again: the checkpoint %s was written by %d processes, whose inputs were at different "
        "positions, and now there are %d.",
        *(path, len(positions), jax.process_count()),
    )
    return None


class Sources:
    """Chooses the state for the verbs of one estimator.

    Args:
      model_dir: an absolute path.
      live_state: of the estimator.
      warm_starts: whether fresh weights are replaced by others.
    """

    def __init__(self, model_dir: str, live_state: LiveState, *, warm_starts: bool = False) -> None:
        self._model_dir, self._live_state, self._warm_starts = model_dir, live_state, warm_starts
        self.expects_checkpoint = False
        """Whether the live state has a checkpoint in model_dir; without one the directory was cleared."""

    def of_checkpoint(self, path: str | os.PathLike[str]) -> Source:
        """The state of the checkpoint at `path`; ValueError where there is none."""
        return Source(None, absolute_path(path), latest.checkpoint_step(os.fspath(path)))

    def current(self, *, training: bool) -> Source:
        """The live state, unless model_dir was cleared or holds a newer checkpoint; else the latest checkpoint.

        Args:
          training: whether a call of train is under way. Its state is used as it is then: the checkpoint of its step
            may not be whole yet.
        """
        lease = self._live_state.lease()
        if lease is not None and training:
            return Source(lease, None, lease.step)
        if lease is None:
            path = latest.latest_undamaged_checkpoint(self._model_dir)
            if (
                path is None
                and not self._warm_starts
                and (of_tensorflow := latest.latest_of_tensorflow(self._model_dir))
            ):
                _logger.warning(
                    "model_dir %s holds checkpoints of TensorFlow, and none of this library: fresh weights are used. "
                    "To begin with those of TensorFlow, write TPUEstimator(..., warm_start_from=%r).",
                    *(self._model_dir, of_tensorflow),
                )
            return self._stored(path)
        cleared = self.expects_checkpoint and not latest.checkpoint_steps(self._model_dir)
        newer = self._stored(self._newer_checkpoint(lease.step))
        if cleared:
            _logger.warning(
                "model_dir %s was cleared: the state in memory, of step %d, is discarded, and fresh weights are used. "
                "To keep a state, leave its checkpoints where they are.",
                *(self._model_dir, lease.step),
            )
            self.expects_checkpoint = False
        elif newer.path is not None:
            _logger.warning(
                "model_dir %s holds a checkpoint of step %d, newer than the state in memory (step %d): the state in "
                "memory is discarded, and the checkpoint is used. Another program writes there; give each a model_dir "
                "of its own.",
                *(self._model_dir, newer.step, lease.step),
            )
        else:
            return Source(lease, None, lease.step)
        self._live_state.discard(lease)
        lease.close()
        return newer

    def _stored(self, path: str | None) -> Source:
        """The state of that checkpoint; None: a fresh one."""
        return Source(None, path, latest.checkpoint_step(path) if path else 0)

    def _newer_checkpoint(self, step: int) -> str | None:
        """The latest whole checkpoint, if it is of a later step."""
        if latest.load_global_step(self._model_dir) <= step:
            return None  # without reading any
        try:
            path = latest.latest_undamaged_checkpoint(self._model_dir)
        except DamagedCheckpointError:
            return None
        return path if path is not None and latest.checkpoint_step(path) > step else None
