"""One checkpoint on disk, opened for reading. Damage is noticed, and a newer format refused, before arrays are read."""

from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding

from jaxspec._src.base.types import Array, PyTree, T
from jaxspec._src.checkpoint import backend, checksums
from jaxspec._src.checkpoint.escaped_names import put
from jaxspec._src.checkpoint.latest import checkpoint_step
from jaxspec._src.checkpoint.parts import FORMAT, Meta, without_empty


class StoredCheckpoint:
    """The shapes and dtypes of a checkpoint, and the reading of its arrays.

    Args:
      path: of its directory.

    Attributes:
      parts: by name, nested dicts of `jax.ShapeDtypeStruct` under escaped names.
      meta: the part `meta`.

    Raises (each method, too):
      DamagedCheckpointError: if a file is not as it was written.
      FileNotFoundError: if the checkpoint was removed.
      ValueError: if a newer version of the library wrote it.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.meta: Meta = self._undamaged(lambda: backend.load(path, {"meta": None}))["meta"]
        if self.meta["format"] > FORMAT:
            raise ValueError(
                f"the checkpoint {path} has format {self.meta['format']}: a newer version of jaxspec wrote it, and "
                f"this version reads formats up to {FORMAT}. Install the newer version, or use another model_dir."
            )
        found = self._undamaged(lambda: backend.shapes(path))
        self.parts = {
            part: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), found.get(part) or {})
            for part in ("variables", "opt_state", "step", "input")
        }
        for part, leaves in self.meta["empty"].items():
            for names, shape, dtype in leaves:
                put(self.parts[part], names, jax.ShapeDtypeStruct(tuple(shape), jax.numpy.dtype(dtype)))

    def load(self, parts: Mapping[str, PyTree], sharding: Sharding) -> dict[str, PyTree]:
        """Arrays of the shapes of `parts`, as nested dicts by part; those without elements are left out."""

        def placed(leaf: Array | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        likes = {part: jax.tree.map(placed, like) for part, tree in parts.items() if (like := without_empty(tree))}
        return self._undamaged(lambda: backend.load(self._path, likes))

    def load_on_host(self, array: jax.ShapeDtypeStruct) -> np.ndarray:
        """One array, on the host: the one that this leaf of `parts` stands for."""
        if 0 in array.shape:
            return np.zeros(array.shape, array.dtype)
        part = next(part for part, tree in self.parts.items() if any(leaf is array for leaf in jax.tree.leaves(tree)))
        placed = array.update(sharding=on_one_device())
        like = jax.tree.map(lambda leaf: placed if leaf is array else backend.NOT_READ, without_empty(self.parts[part]))
        found = self._undamaged(lambda: backend.load(self._path, {part: like}))[part]
        return next(np.array(leaf) for leaf in jax.tree.leaves(found) if leaf is not backend.NOT_READ)

    def _undamaged(self, read: Callable[[], T]) -> T:
        """What `read` returns, after the checksums of all files were compared. Errors name the checkpoint."""
        checksums.verify(self._path, checkpoint_step(self._path))
        try:
            return read()
        except Exception as error:
            # When files are removed meanwhile, orbax may raise nearly anything.
            checksums.raise_if_removed(self._path, error)
            raise RuntimeError(
                f"the checkpoint {self._path} is undamaged, but could not be read: {type(error).__name__}: {error}"
            ) from error


def on_one_device() -> Sharding:
    """The sharding of arrays on the first device of this process."""
    return SingleDeviceSharding(jax.local_devices()[0])
