"""The arrays of a state, or of a checkpoint, by name: `params/Dense_0/kernel`, `opt_state/0/count`, `global_step`."""

import os
from collections.abc import Collection, Mapping

import jax
import numpy as np

from jaxspec._src.base.arrays import key_name, named_leaves, put
from jaxspec._src.base.types import PyTree, Variables
from jaxspec._src.checkpoint.escaped_names import unescape
from jaxspec._src.checkpoint.parts import stored_form
from jaxspec._src.checkpoint.restore import StoredCheckpoint
from jaxspec._src.step.state import TrainState


def array_names(path: str | os.PathLike[str]) -> dict[str, jax.ShapeDtypeStruct]:
    """Names of all arrays of a checkpoint, with their shapes and dtypes.

    The names are paths: `params/...` and other collections of the variables, `opt_state/...`, `global_step`. Random
    keys have the shape and dtype of their data.

    Args:
      path: of the checkpoint's directory, as `latest_checkpoint` returns it.

    Raises:
      ValueError: if `path` is not that of a checkpoint, or a newer version of the library wrote it.
      DamagedCheckpointError: if a file is not as it was written.
      FileNotFoundError: if there is no such checkpoint.
    """
    return _by_name(StoredCheckpoint(path).parts)


def read_array(path: str | os.PathLike[str], name: str) -> np.ndarray:
    """One array of a checkpoint, on the host. No other array is kept in memory.

    The first call of a process reads all files of the checkpoint, to compare their checksums.

    Args:
      path: of the checkpoint's directory.
      name: one of `array_names(path)`.

    Raises:
      ValueError: if there is no such name; it lists the names there are. Other errors as for `array_names`.
    """
    return read_arrays(path, [name])[name]


def read_arrays(path: str | os.PathLike[str], names: Collection[str]) -> dict[str, np.ndarray]:
    """Several arrays of a checkpoint, by name, on the host, in one pass over its files. Otherwise as `read_array`.

    Raises:
      TypeError: if `names` is a string.
    """
    stored = StoredCheckpoint(path)
    arrays = _by_name(stored.parts)
    _check_names(path, names, arrays)
    return dict(zip(names, stored.load_on_host([arrays[name] for name in names]), strict=True))


def load_variables(path: str | os.PathLike[str], names: Collection[str] | None = None) -> dict[str, PyTree]:
    """The variables of a checkpoint, on the host, in one pass over its files.

    Args:
      path: of the checkpoint's directory.
      names: of the variables to read, such as `params/Dense_0/kernel`; None: of all.

    Returns:
      Nested dicts of NumPy arrays: `{"params": {"Dense_0": {"kernel": ...}}, ...}`. Random keys are their data.

    Raises:
      As `read_arrays`.
    """
    stored = StoredCheckpoint(path)
    variables = unescape(stored.parts["variables"])
    arrays = named_leaves(variables)
    names = list(arrays) if names is None else names
    _check_names(path, names, arrays)
    read = dict(zip(names, stored.load_on_host([arrays[name] for name in names]), strict=True))
    loaded: dict[str, PyTree] = {}
    for name, (keys, _) in zip(arrays, jax.tree_util.tree_leaves_with_path(variables), strict=True):
        if name in read:
            put(loaded, [key_name(key) for key in keys], read[name])
    return loaded


def _check_names(path: str | os.PathLike[str], names: Collection[str], arrays: Collection[str]) -> None:
    if isinstance(names, str):
        raise TypeError(f"expected a list of names, got the string {names!r}. Write [{names!r}].")
    for name in names:
        if name not in arrays:
            raise ValueError(f"the checkpoint {path} has no array {name!r}; the names are {sorted(arrays)}.")


def host_variables(variables: Variables) -> dict[str, PyTree]:
    """The variables of a state, as `load_variables` returns those of a checkpoint."""
    copies: dict[str, PyTree] = jax.tree.map(np.array, unescape(stored_form(variables)))
    return copies


def state_arrays(state: TrainState) -> dict[str, jax.Array]:
    """The arrays of a state, under the names that `array_names` gives them in a checkpoint."""
    variables, opt_state = (stored_form(tree) for tree in (state.variables, state.opt_state))
    return _by_name({"variables": variables, "opt_state": opt_state, "step": {"global_step": state.step}})


def _by_name(parts: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """The leaves by names that differ from each other, even if a collection is called as a part of the state is."""
    variables, opt_state = unescape(parts["variables"]), unescape(parts["opt_state"])
    clash = {"opt_state", "global_step"} & set(variables)
    where = {"variables": variables} if clash else variables
    return named_leaves({**where, "opt_state": opt_state, "global_step": parts["step"]["global_step"]})
