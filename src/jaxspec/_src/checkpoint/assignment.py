"""Stored arrays as the values of fresh variables, by a map of names as TensorFlow's `init_from_checkpoint` has it."""

import logging
from collections.abc import Callable, Collection, Mapping

import jax
import numpy as np

from jaxspec._src.base.arrays import describe_array, is_array, named_leaves
from jaxspec._src.base.name_maps import Converter, Target
from jaxspec._src.base.types import Array, Variables
from jaxspec._src.checkpoint.assignment_map import sources_of
from jaxspec._src.checkpoint.fitted import fitted
from jaxspec._src.checkpoint.names_in_messages import listed, similar_names

_logger = logging.getLogger("jaxspec")


def assigned(
    variables: Variables,
    assignment_map: Mapping[str, Target],
    names: Collection[str],
    read: Callable[[Collection[str]], Mapping[str, np.ndarray]],
    path: str,
) -> Variables:
    """The variables with stored values in those that the map names. They keep their shapes and dtypes.

    Args:
      names: those in the checkpoint.
      read: called once with the names that are needed.
      path: of the checkpoint, for messages.

    Raises:
      ValueError: for a name that is not in the checkpoint, or not in the variables; for a variable that the map names
        twice; for a value of another shape, or of a dtype that the variable cannot hold.
    """
    leaves = named_leaves(variables)
    sources = sources_of(assignment_map, leaves)
    missing = {name: source for name, (source, _) in sources.items() if source not in names}
    if missing:
        absent = listed([f"{source!r} (for {name})" for name, source in missing.items()])
        similar = similar_names(next(iter(missing.values())), names)
        raise ValueError(
            f"init_from_checkpoint: not found in the checkpoint {path}: {absent}. Similar names there: {similar}."
        )
    stored = read({source for source, _ in sources.values()})
    values = {}
    for name, (source, convert) in sources.items():
        what = f"{name} from {source!r} of {path}"
        value = stored[source] if convert is None else _converted(stored[source], convert, leaves[name], what)
        values[name] = fitted(value, leaves[name], f"init_from_checkpoint: {what}")
    fresh = [name for name in leaves if name not in values]
    _logger.info(
        "%d variables take their values from %s. Those of init_fn stay in %s.",
        len(values),
        path,
        listed(fresh) or "none",
    )
    new = [values.get(name, leaf) for name, leaf in leaves.items()]
    replaced: Variables = jax.tree.unflatten(jax.tree.structure(variables), new)
    return replaced


def _converted(array: np.ndarray, convert: Converter, leaf: Array, what: str) -> np.ndarray:
    try:
        value = convert(array)
    except Exception as error:
        error.add_note(f"init_from_checkpoint: this is the error of the converter for {what}, {describe_array(array)}.")
        raise
    if not is_array(value):
        raise ValueError(
            f"init_from_checkpoint: {what}: its converter returned {value!r}, and not an array of the shape "
            f"{list(leaf.shape)}."
        )
    return value
