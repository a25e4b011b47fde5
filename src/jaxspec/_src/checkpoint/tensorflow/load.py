"""The functions of TensorFlow that read checkpoints."""

import os
from collections.abc import Callable, Collection, Mapping

import numpy as np

from jaxspec._src.base.paths import absolute_path
from jaxspec._src.base.types import Variables
from jaxspec._src.checkpoint.assignment import Target, assigned, check_assignment_map
from jaxspec._src.checkpoint.tensorflow.reader import CheckpointReader, open_checkpoint

_OBJECT_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
"""Ends the names of variables that `tf.train.Checkpoint` and Keras save."""


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


def init_from_checkpoint(
    path: str | os.PathLike[str], assignment_map: Mapping[str, Target]
) -> Callable[[Variables], Variables]:
    """A `Scaffold.init_fn` that takes values of fresh variables from a TensorFlow checkpoint.

    Args:
      path: as for `load_checkpoint`. It is opened when the function is called: not where training is resumed.
      assignment_map: by name in the checkpoint, the path of the variable, such as `params/Dense_0/kernel`; or a dict
        of paths and converters of the array. `{"old/": "params/new/"}` is about all variables below `params/new/`,
        each of which must be there; `"/"` stands for everything. `/.ATTRIBUTES/VARIABLE_VALUE` may be left out at the
        end of a name. The functions of `jaxspec.checkpoint.tf` that are named after layers make parts of such a map.

    Returns:
      A function of the variables that returns them, with NumPy arrays for those that the map names. Floats are rounded
      to the dtype of the variable. The log says which variables are left. It raises a ValueError for names that are not
      there, variables that are named twice, and values that do not fit; otherwise errors as of `load_checkpoint`.

    Raises:
      TypeError: if the map is not a dict of names.
      ValueError: if it maps a scope to a name, or a name to a scope.
    """
    check_assignment_map(assignment_map)
    prefix = absolute_path(path)
    short_map = {name.removesuffix(_OBJECT_SUFFIX): target for name, target in assignment_map.items()}

    def init_fn(variables: Variables) -> Variables:
        reader = open_checkpoint(prefix)
        names = {name.removesuffix(_OBJECT_SUFFIX): name for name in reader.names()}

        def read(needed: Collection[str]) -> dict[str, np.ndarray]:
            return {name: reader.read(names[name]) for name in needed}

        return assigned(variables, short_map, names, read, reader.path)

    return init_fn
