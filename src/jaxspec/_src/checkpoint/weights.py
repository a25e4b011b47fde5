"""Weights that a model can start from, by name, whatever kind of file holds them."""

import os
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import jax
import numpy as np

from jaxspec._src.base.arrays import named_leaves
from jaxspec._src.base.files import find_file, is_directory, names_in
from jaxspec._src.base.paths import absolute_path, join
from jaxspec._src.base.safetensors_files import array_shapes, read_arrays
from jaxspec._src.checkpoint import checksums, latest
from jaxspec._src.checkpoint.escaped_names import unescape
from jaxspec._src.checkpoint.restore import StoredCheckpoint
from jaxspec._src.checkpoint.tensorflow.find import is_tensorflow_checkpoint, prefixes_near
from jaxspec._src.checkpoint.tensorflow.reader import load_checkpoint

OBJECT_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
"""Ends the names of variables that `tf.train.Checkpoint` and Keras save. It is left out in the names of `Weights`."""
_SUFFIX = ".safetensors"


class Weights(NamedTuple):
    """The arrays that are stored at a path."""

    path: str
    """The file or directory that is read: of a model_dir its latest checkpoint, of an export the file of weights."""
    arrays: Mapping[str, jax.ShapeDtypeStruct]
    """Shapes and dtypes by name. Of a checkpoint these are the variables alone: `params/Dense_0/kernel`. Strings of
    TensorFlow have the dtype of objects."""
    read: Callable[[Collection[str]], dict[str, np.ndarray]]
    """The arrays with these names, on the host."""


def open_weights(path: str | os.PathLike[str]) -> Weights:
    """Finds out what is stored at `path`, without reading arrays.

    Args:
      path: a checkpoint, a model_dir (its latest undamaged checkpoint is taken), an export, a `.safetensors` file, or a
        checkpoint of TensorFlow.

    Raises:
      FileNotFoundError: if there is nothing at the path. It is a ValueError, too.
      ValueError: if there is something else; if a file cannot be read.
      DamagedCheckpointError: if a file of the checkpoint is not as it was written.
    """
    path = absolute_path(path)
    if path.endswith(_SUFFIX) and find_file(path) is not None:
        return _safetensors(path)
    if latest.is_checkpoint(path):
        return _checkpoint(path)
    checkpoint = latest.latest_undamaged_checkpoint(path)
    if checkpoint is not None:
        return _checkpoint(checkpoint)
    files = [name for name in names_in(path) if name.endswith(_SUFFIX)]
    if len(files) == 1:
        return _safetensors(join(path, files[0]))
    if is_tensorflow_checkpoint(path):
        return _tensorflow(path)
    expected = (
        "Expected the path of a checkpoint, of a model_dir, of an export, of a .safetensors file or of a checkpoint of "
        "TensorFlow."
    )
    if prefixes := prefixes_near(path):
        expected += f" Those of TensorFlow near it: {prefixes}."
    if files:
        raise ValueError(f"{path} holds several files of weights: {sorted(files)}. Name one of them.")
    if is_directory(path) or find_file(path) is not None:
        raise ValueError(f"{path} holds no weights. {expected}")
    raise checksums.MissingCheckpointError(f"there is nothing at {path}. {expected}")


def _checkpoint(path: str) -> Weights:
    stored = StoredCheckpoint(path)
    arrays = named_leaves(unescape(stored.parts["variables"]))

    def read(names: Collection[str]) -> dict[str, np.ndarray]:
        return dict(zip(names, stored.load_on_host([arrays[name] for name in names]), strict=True))

    return Weights(path, arrays, read)


def _tensorflow(path: str) -> Weights:
    reader = load_checkpoint(path)
    stored = {name.removesuffix(OBJECT_SUFFIX): (name, *described) for name, described in reader.names().items()}
    arrays = {name: jax.ShapeDtypeStruct(shape, dtype) for name, (_, shape, dtype) in stored.items()}
    return Weights(reader.path, arrays, lambda names: {name: reader.read(stored[name][0]) for name in names})


def _safetensors(path: str) -> Weights:
    return Weights(path, array_shapes(path), lambda names: read_arrays(path, names))
