"""Weights in a file of safetensors, for other programs and from them."""

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import jax
import numpy as np

from jaxspec._src.base.arrays import is_key, named_leaves, put
from jaxspec._src.base.files import write_file
from jaxspec._src.base.paths import absolute_path
from jaxspec._src.base.safetensors_files import check_dtypes, encode_arrays, read_arrays
from jaxspec._src.base.types import PyTree, Variables

if TYPE_CHECKING:
    from jaxspec._src.checkpoint.assignment import Target


def save_safetensors(
    path: str | os.PathLike[str],
    variables: Variables,
    rename: "Mapping[str, Target] | Callable[[str], str] | None" = None,
) -> None:
    """Writes variables to a file, which any program that has the library safetensors can read.

    Args:
      path: of the file, on the disk or in a bucket. It is there as a whole, old or new, at any moment.
      variables: `{"params": ...}`, or any tree of arrays of JAX or NumPy. The name of an array is its path, such as
        `params/Dense_0/kernel`. Random keys are their data.
      rename: a function of such a name that returns another one. Or a dict: by name, the other name, or
        `{other name: converter}` with a function of the NumPy array, as
        `{"params/Dense_0/kernel": {"fc.weight": np.transpose}}` for PyTorch. Names that it lacks stay.

    Raises:
      TypeError: for a `rename` of another kind.
      ValueError: for an array of a dtype that the format lacks; if `rename` has a name that no array has, or gives two
        arrays one name.
      OSError: if the file cannot be written.
    """
    named = {name: _on_host(leaf) for name, leaf in named_leaves(variables).items()}
    check_dtypes(named)
    renamed = _renamed(named, rename)
    check_dtypes(renamed)
    write_file(absolute_path(path), encode_arrays(renamed))


def load_safetensors(path: str | os.PathLike[str]) -> dict[str, PyTree]:
    """The arrays of a file of safetensors, of any program, on the host.

    Args:
      path: of the file, on the disk or in a bucket.

    Returns:
      Nested dicts of NumPy arrays: the slashes of a name divide it. What `save_safetensors` wrote without `rename`
      comes back as it was.

    Raises:
      ValueError: if it is no such file, or is not whole; if one name is a part of another.
      FileNotFoundError: if there is none.
    """
    tree: dict[str, PyTree] = {}
    arrays = read_arrays(absolute_path(path))
    for name, array in arrays.items():
        if any(other.startswith(f"{name}/") for other in arrays):
            raise ValueError(f"{path} has {name!r}, and others below it: no nested dicts hold both.")
        put(tree, name.split("/"), array)
    return tree


_RENAME = "Write {'params/w': 'weight'}, or {'params/w': {'weight': np.transpose}}."


def _on_host(leaf: PyTree) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if isinstance(leaf, jax.Array) and is_key(leaf) else leaf)


def _renamed(
    named: Mapping[str, np.ndarray], rename: "Mapping[str, Target] | Callable[[str], str] | None"
) -> dict[str, np.ndarray]:
    targets: Mapping[str, Target] = {name: rename(name) for name in named} if callable(rename) else rename or {}
    if not isinstance(targets, Mapping):
        raise TypeError(f"save_safetensors: rename must be a dict or a function, got {rename!r}. {_RENAME}")
    unknown = sorted(targets.keys() - named.keys())
    if unknown:
        raise ValueError(f"save_safetensors: rename has {unknown}, and the variables are {sorted(named)}.")
    out: dict[str, np.ndarray] = {}
    for name, array in named.items():
        target = targets.get(name, name)
        if isinstance(target, str):
            new = {target: array}
        elif isinstance(target, Mapping) and all(map(callable, target.values())):
            new = {key: np.asarray(fn(array)) for key, fn in target.items()}
        else:
            raise TypeError(f"save_safetensors: rename gives {name!r} the name {target!r}. {_RENAME}")
        twice = sorted(out.keys() & new.keys())
        if twice:
            raise ValueError(f"save_safetensors: rename gives the name {twice[0]!r} to {name} and to another array.")
        out |= new
    return out
