"""Weights in a file of safetensors, for other programs and from them."""

import os
from collections.abc import Callable, Mapping

import numpy as np

from jaxspec._src.base.arrays import key_data, named_leaves, put
from jaxspec._src.base.files import write_file
from jaxspec._src.base.name_maps import Target, are_converters
from jaxspec._src.base.paths import absolute_path
from jaxspec._src.base.safetensors_files import check_dtypes, encode_arrays, read_arrays
from jaxspec._src.base.types import PyTree, Variables

_EXAMPLE = (
    "Write {'params/Dense_0/kernel': 'fc.weight'}, or with a converter {'params/Dense_0/kernel': {'fc.weight': "
    "np.transpose}}."
)


def save_safetensors(
    path: str | os.PathLike[str],
    variables: Variables,
    rename: Mapping[str, Target] | Callable[[str], str] | None = None,
) -> None:
    """Writes variables to a file, which any program that has the library safetensors can read.

    Args:
      path: of the file, on the disk or in a bucket. It is there as a whole, old or new, at any moment.
      variables: `{"params": ...}`, or any tree of arrays of JAX or NumPy. The name of an array is its path, such as
        `params/Dense_0/kernel`. Typed random keys are written as their data.
      rename: a function of such a name that returns another one. Or a dict: by name, the other name, or
        `{other name: converter}` with a function of the NumPy array, as
        `{"params/Dense_0/kernel": {"fc.weight": np.transpose}}` for PyTorch. Names that it lacks stay.

    Raises:
      ValueError: for an array of a dtype that the format lacks; if `rename` has a name that no array has, or gives two
        arrays one name.
      TypeError: if `rename` gives anything but names and converters.
      OSError: if the file cannot be written.
    """
    named = {name: np.asarray(leaf) for name, leaf in named_leaves(key_data(variables)).items()}
    renamed = _renamed(named, rename)
    check_dtypes(renamed)
    write_file(absolute_path(path), encode_arrays(renamed))


def load_safetensors(path: str | os.PathLike[str]) -> dict[str, PyTree]:
    """The arrays of a file of safetensors, of any program, on the host.

    Args:
      path: of the file, on the disk or in a bucket.

    Returns:
      Nested dicts of NumPy arrays: the slashes of a name divide it. Nested dicts that `save_safetensors` wrote without
      `rename` come back as they were.

    Raises:
      ValueError: if it is no such file, or is not whole; for an array of a dtype that NumPy lacks; if one name is a
        part of another.
      FileNotFoundError: if there is none.
      IsADirectoryError: if it is a directory.
    """
    tree: dict[str, PyTree] = {}
    arrays = read_arrays(absolute_path(path))
    for name, array in arrays.items():
        if any(other.startswith(f"{name}/") for other in arrays):
            raise ValueError(f"{path} has {name!r}, and others below it: no nested dicts hold both.")
        put(tree, name.split("/"), array)
    return tree


def _renamed(
    named: Mapping[str, np.ndarray], rename: Mapping[str, Target] | Callable[[str], str] | None
) -> dict[str, np.ndarray]:
    if not callable(rename) and not isinstance(rename, Mapping | None):
        raise TypeError(f"save_safetensors: rename must be a function of a name or a dict, got {rename!r}. {_EXAMPLE}")
    targets: Mapping[str, Target] = {name: rename(name) for name in named} if callable(rename) else rename or {}
    unknown = sorted(targets.keys() - named.keys())
    if unknown:
        raise ValueError(f"save_safetensors: rename has {unknown}, and the variables are {sorted(named)}.")
    out: dict[str, np.ndarray] = {}
    for name, array in named.items():
        target = targets.get(name, name)
        if not isinstance(target, str) and not are_converters(target):
            raise TypeError(f"save_safetensors: rename has {target!r} for {name}. {_EXAMPLE}")
        if isinstance(target, str):
            new = {target: array}
        else:
            new = {key: np.asarray(convert(array)) for key, convert in target.items()}
        twice = sorted(out.keys() & new.keys())
        if twice:
            raise ValueError(f"save_safetensors: rename gives the name {twice[0]!r} to {name} and to another array.")
        out |= new
    return out
