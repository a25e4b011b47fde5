"""Saver: writes the checkpoints of one estimator, and removes the old ones."""

import functools
import logging
import time
import uuid
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxspec._src.base.arrays import named_leaves
from jaxspec._src.base.errors import NanLossDuringTrainingError
from jaxspec._src.base.files import check_writable, write_file
from jaxspec._src.base.paths import join
from jaxspec._src.base.types import Clock
from jaxspec._src.checkpoint import backend
from jaxspec._src.checkpoint.background_write import BackgroundWrite
from jaxspec._src.checkpoint.checksums import KEPT
from jaxspec._src.checkpoint.claim import Claim
from jaxspec._src.checkpoint.latest import checkpoint_path, checkpoint_steps, times_kept
from jaxspec._src.checkpoint.parts import check_names, parts_of
from jaxspec._src.checkpoint.removal import failure_is_a_warning, remove_checkpoint, remove_leftovers
from jaxspec._src.device.processes import Alone, Exchange
from jaxspec._src.device.shards import first_shard
from jaxspec._src.step.state import TrainState

_logger = logging.getLogger("jaxspec")


class _Start(NamedTuple):
    """What a process knows when a save begins. What process 0 says of the directory counts."""

    exists: bool
    """Whether there is a checkpoint of this step."""
    name: str
    """A new one, for what is written."""
    position: str | None
    operation: int


class Saver:
    """Writes the checkpoints of one estimator into a directory, one at a time, in the background.

    Args:
      model_dir: the directory.
      keep_max: how many checkpoints are kept; None or 0 keeps all.
      keep_every_n_hours: how often one is kept for ever besides.
      clock: seconds since the epoch.
    """

    def __init__(
        self,
        model_dir: str,
        *,
        keep_max: int | None = 5,
        keep_every_n_hours: float = 10000,
        clock: Clock = time.time,
    ) -> None:
        self.model_dir = model_dir
        self._keep_max, self._keep_secs = keep_max, keep_every_n_hours * 3600
        self._clock, self._started = clock, clock()
        self._own_steps: set[int] = set()
        self._writing: tuple[int, BackgroundWrite] | None = None
        self._exchange: Exchange = Alone()
        self._claim: Claim | None = None

    def begin(self, step: int | None, exchange: Exchange, claim: Claim | None = None) -> None:
        """Begins a run, and removes what killed runs left.

        Args:
          exchange: of the run. Its processes write each checkpoint together, and call `save` and `wait` alike.
          step: the step of the state with which the run begins: a checkpoint of this step, if there is one, holds that
            state, and later checkpoints belong to another run. None if nothing is known about the checkpoints.
          claim: on the directory, in process 0; nothing is written once another training has it.
        """
        self._claim = claim
        if step is not None:
            self._own_steps = {own for own in self._own_steps if own < step} | {step}
        self._exchange = exchange
        if exchange.count > 1:
            if not backend.reaches(self.model_dir):
                raise ValueError(
                    f"{self.model_dir}: several processes write a checkpoint together, to a disk that they share or to "
                    "gs://. Use one of these as model_dir, or one process."
                )
            self._writing = None  # whether the others know of it, too, is not known
        if exchange.is_first:
            remove_leftovers(self.model_dir)

    def check_directory(self) -> None:
        """Raises an OSError that says what to do if the directory cannot be written to, or cannot be made."""
        try:
            check_writable(self.model_dir)
        except OSError as error:
            raise OSError(
                error.errno,
                f"checkpoints cannot be written to {self.model_dir}: {error.strerror or error}. Nothing was trained. "
                "Make the directory writable, or name another model_dir. RunConfig(save_checkpoints_steps=None, "
                "save_checkpoints_secs=None) trains without checkpoints.",
            ) from error

    def save(self, state: TrainState, position: str | None = None) -> None:
        """Begins to write a checkpoint of the state, and returns when the state may be donated.

        It waits first for the checkpoint before, if that is still being written. It writes nothing if it has already
        written this step. A checkpoint of another run is replaced, with a warning. After an interrupt the writing goes
        on, and `wait` waits for it.

        Args:
          state: the same on all devices.
          position: the encoded position of the input of this process, or None.

        Raises:
          NanLossDuringTrainingError: if a weight is not finite; nothing is written then.
          ValueError: if a checkpoint could not tell two leaves apart; it names both, and nothing is written.
          OSError: if the checkpoint before could not be written.
          RuntimeError: if another training has taken the directory over.
        """
        self.wait()
        if self._claim is not None:
            self._claim.check()
        exchange, first = self._exchange, first_shard(state)
        step = int(first.step)
        path = checkpoint_path(self.model_dir, step)
        is_alone = exchange.count == 1
        mine = _Start(
            exists=step in checkpoint_steps(self.model_dir),
            name=uuid.uuid4().hex[:8],
            position=position,
            operation=0 if is_alone else backend.operation_number(),
        )
        starts = exchange.gather("save", mine)
        exists, name, _, _ = starts[0]
        if exists and step in self._own_steps:
            return
        check_names(first)
        _refuse_non_finite(first, step)
        if exchange.is_first:
            if exists:
                _logger.warning("The checkpoint %s is of another run; it is replaced.", path)
            _logger.info("Saving checkpoint for %d into %s.", step, path)
        # orbax refuses arrays that one of several processes has alone.
        parts = parts_of(first if is_alone else state, [start.position for start in starts])
        operation = None if is_alone else backend.agreed_number(start.operation for start in starts)
        remove_old = functools.partial(self._remove_old, max({step, *self._own_steps}))
        writing = BackgroundWrite(path, step, jax.device_get(parts) if is_alone else parts, name, operation, remove_old)
        self._writing = (step, writing)
        self._writing[1].begin()

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until the last checkpoint is written and the old ones are removed, at most `timeout` seconds.

        Returns:
          Whether it is written. After an interrupt or a timeout one may wait again.

        Raises:
          OSError: if it could not be written. It is raised once.
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
        self._exchange.gather(f"end of the checkpoint of step {step}", None)
        self._own_steps.add(step)
        self._writing = None
        return True

    def wait_after_error(self, timeout: float) -> None:
        """As `wait`, when a run ends with an error. It waits for none of the other processes, if there are some."""
        if self._exchange.count == 1:
            self.wait()
        elif self._writing is not None:
            self._writing[1].wait(timeout)

    def raise_if_failed(self) -> None:
        """Raises the OSError of a checkpoint that could not be written, if that is known by now. It does not wait."""
        if self._writing is not None and self._writing[1].failed:
            self.wait()

    def _remove_old(self, newest: int) -> None:
        """Removes all but the newest `keep_max` checkpoints of this run. A failure is a warning.

        Args:
          newest: the last step of this run. Later ones are damaged or of another run: they do not take the place of
            these.
        """
        if not self._keep_max:
            return
        with failure_is_a_warning(f"{self.model_dir}: old checkpoints"):
            steps = [step for step in checkpoint_steps(self.model_dir) if step <= newest]
            kept = times_kept(self.model_dir)
            last_kept = max((kept[step] for step in steps if step in kept), default=self._started)
            for step in [step for step in steps if step not in kept][: -self._keep_max]:
                path = checkpoint_path(self.model_dir, step)
                if self._clock() - last_kept >= self._keep_secs:
                    last_kept = self._clock()
                    write_file(join(path, KEPT), b"kept by keep_checkpoint_every_n_hours\n")
                else:
                    remove_checkpoint(path)


def _refuse_non_finite(state: TrainState, step: int) -> None:
    """Weights must be finite. Other collections may hold infinities (a running minimum, a mask), but no NaN."""
    leaves = {
        name: leaf
        for name, leaf in named_leaves(state.variables).items()
        if leaf.size and jnp.issubdtype(leaf.dtype, jnp.inexact)
    }
    is_good = jax.device_get(_are_good(leaves))
    bad = [name for name in leaves if not is_good[name]]
    if bad:
        when = f"After step {step - 1} (counted from 0)" if step else "Before the first step"
        raise NanLossDuringTrainingError(
            f"{when} these variables are not finite: {', '.join(bad)}. No checkpoint was written; the latest, if there "
            "is one, is from before. Lower the learning rate, clip the gradients, or look at init_fn."
        )


@jax.jit
def _are_good(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Whether the parameters are finite, and other variables are no NaN."""
    # On a CPU this costs a third of `jnp.isfinite(x).all()`. A small type may have no zero and no infinity.
    wide = {name: x.astype(jnp.float32) if x.dtype.itemsize < 4 else x for name, x in leaves.items()}
    largest = {name: jnp.abs(x).max() for name, x in wide.items()}
    return {name: jnp.isfinite(x) if name.startswith("params/") else ~jnp.isnan(x) for name, x in largest.items()}
