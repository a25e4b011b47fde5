"""The functions of TensorFlow that read checkpoints."""

import os

import numpy as np

from jaxspec._src.checkpoint.tensorflow.reader import CheckpointReader, open_checkpoint


def load_checkpoint(path: str | os.PathLike[str]) -> CheckpointReader:
    """Opens a checkpoint of TensorFlow 1 or 2, without TensorFlow. No variable is read yet.

    Args:
      path: a prefix such as `model.ckpt-123`, or a directory whose file `checkpoint` names the latest. It may be in a
        bucket.

    Raises:
      ValueError: if there is no such checkpoint, or it is in a format that is not known.
      DamagedCheckpointError: if its index is damaged.
    """
    return open_checkpoint(path)


def list_variables(path: str | os.PathLike[str]) -> list[tuple[str, list[int]]]:
    """(name, shape) of each variable, sorted by name. Only the index is read. Errors as for `load_checkpoint`."""
    return sorted(open_checkpoint(path).get_variable_to_shape_map().items())


def load_variable(path: str | os.PathLike[str], name: str) -> np.ndarray:
    """One variable, as `CheckpointReader.read` gives it. No other variable is read."""
    return open_checkpoint(path).read(name)
