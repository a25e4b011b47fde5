"""init_from_checkpoint: fresh variables that take stored values, under other names and converted."""

import os
from collections.abc import Callable, Mapping

from jaxspec._src.base.name_maps import Target
from jaxspec._src.base.paths import absolute_path
from jaxspec._src.base.types import Variables
from jaxspec._src.checkpoint.assignment import assigned
from jaxspec._src.checkpoint.assignment_map import check_assignment_map
from jaxspec._src.checkpoint.weights import OBJECT_SUFFIX, open_weights


def init_from_checkpoint(
    path: str | os.PathLike[str], assignment_map: Mapping[str, Target]
) -> Callable[[Variables], Variables]:
    """A `Scaffold.init_fn` that takes values of fresh variables from stored weights.

    Args:
      path: a checkpoint, a model_dir (its latest checkpoint is taken), an export, a `.safetensors` file, or a
        TensorFlow checkpoint. It is opened when the function is called: not where training is resumed.
      assignment_map: by name in the checkpoint, the path of the variable, such as `params/Dense_0/kernel`; or a dict
        of paths and converters of the array. `{"old/": "params/new/"}` is about all variables below `params/new/`,
        each of which must be there. `{"old/": "new/"}` is about those below `new/` in all collections, with values
        from below `old/` in the same collections. `"/"` stands for everything. `/.ATTRIBUTES/VARIABLE_VALUE` may be
        left out at the end of a name. The functions of `jaxspec.checkpoint.tf` that are named after layers make parts
        of such a map.

    Returns:
      A function of the variables that returns them, with NumPy arrays for those that the map names. Floats are rounded
      to the dtype of the variable. The log says which variables are left. It raises a ValueError if the weights cannot
      be read, for names that are not there, for variables that are named twice, and for values that do not fit.

    Raises:
      TypeError: if the map is not a dict of names.
      ValueError: if it maps a scope to a name, or a name to a scope.
    """
    check_assignment_map(assignment_map)
    place = absolute_path(path)
    short_map = {name.removesuffix(OBJECT_SUFFIX): target for name, target in assignment_map.items()}

    def init_fn(variables: Variables) -> Variables:
        weights = open_weights(place)
        return assigned(variables, short_map, weights.arrays, weights.read, weights.path)

    return init_fn
