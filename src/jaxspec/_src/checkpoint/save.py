"""Writing a state that no training of an estimator has made, for one to go on with."""

import os

import jax
import jax.numpy as jnp

from jaxspec._src.base.paths import absolute_path
from jaxspec._src.checkpoint.claim import claimed
from jaxspec._src.checkpoint.latest import checkpoint_path
from jaxspec._src.checkpoint.saver import Saver
from jaxspec._src.step.state import TrainState


def save(model_dir: str | os.PathLike[str], state: TrainState) -> str:
    """Writes a checkpoint of a state, so that an estimator with this model_dir goes on from it.

    Returns when the checkpoint is whole. A checkpoint of the same step is replaced, with a warning; others stay.

    Args:
      model_dir: it is made if it does not exist.
      state: as `create_train_state`, a step of `make_train_step` or `optim.from_tensorflow` returns it.

    Returns:
      The path of the checkpoint.

    Raises:
      NanLossDuringTrainingError: if a weight is not finite.
      OSError: if model_dir cannot be written to.
      RuntimeError: if a training is using model_dir; if there are several processes.
    """
    if jax.process_count() > 1:
        raise RuntimeError(
            f"checkpoint.save writes with one process, and this is one of {jax.process_count()}. Call it in a program "
            "of its own, before the processes are started."
        )
    directory = absolute_path(model_dir)
    with claimed(directory):
        saver = Saver(directory, keep_max=None)
        saver.check_directory()
        saver.save(jax.tree.map(jnp.asarray, state))
        saver.wait()
    return checkpoint_path(directory, int(state.step))
