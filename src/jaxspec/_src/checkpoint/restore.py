"""Reading a checkpoint: its parts, or the state, or the variables alone, in the structure that the model has.

Damage is noticed, and a newer format refused, before arrays are read.
"""

import functools
import operator
import os
import tempfile
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding
from jax.tree_util import KeyPath

from jaxspec._src.base import buckets
from jaxspec._src.base.arrays import describe_array, is_key, named_leaves, put
from jaxspec._src.base.files import remove
from jaxspec._src.base.paths import absolute_path
from jaxspec._src.base.types import PyTree, T
from jaxspec._src.checkpoint import backend, checksums, parts
from jaxspec._src.checkpoint.escaped_names import escaped_path, unescape
from jaxspec._src.checkpoint.latest import checkpoint_step
from jaxspec._src.step.state import TrainState


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

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path = absolute_path(path)
        self._readable = path if backend.reaches(path) else self._undamaged(self._local_copy)
        self.meta: parts.Meta = self._undamaged(lambda: backend.load(self._readable, {"meta": None}))["meta"]
        if self.meta["format"] > parts.FORMAT:
            raise ValueError(
                f"the checkpoint {path} has format {self.meta['format']}: a newer version of jaxspec wrote it, and "
                f"this version reads formats up to {parts.FORMAT}. Install the newer version, or use another model_dir."
            )
        found = self._undamaged(lambda: backend.shapes(self._readable))
        self.parts = {
            part: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), found.get(part) or {})
            for part in ("variables", "opt_state", "step", "input")
        }
        for part, leaves in self.meta["empty"].items():
            for names, shape, dtype in leaves:
                put(self.parts[part], names, jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype)))

    def load(self, forms: Mapping[str, PyTree], sharding: Sharding) -> dict[str, PyTree]:
        """Arrays of the shapes of `forms`, as nested dicts by part; those without elements are left out."""
        likes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), parts.without_empty(forms)
        )
        return self._undamaged(lambda: backend.load(self._readable, likes))

    def load_on_host(self, arrays: Sequence[jax.ShapeDtypeStruct]) -> list[np.ndarray]:
        """Arrays on the host, in one pass: those that these leaves of `parts` stand for."""
        asked = {id(array) for array in arrays if 0 not in array.shape}
        placed = SingleDeviceSharding(jax.local_devices()[0])

        def like(leaf: jax.ShapeDtypeStruct) -> PyTree:
            return leaf.update(sharding=placed) if id(leaf) in asked else backend.NOT_READ

        kept = parts.without_empty(self.parts)
        needed = {part: tree for part, tree in kept.items() if asked & set(map(id, jax.tree.leaves(tree)))}
        found = self._undamaged(lambda: backend.load(self._readable, jax.tree.map(like, needed))) if needed else {}
        read = {
            id(leaf): np.array(value)
            for leaf, value in zip(jax.tree.leaves(needed), jax.tree.leaves(found), strict=True)
            if id(leaf) in asked
        }
        return [read[id(array)] if id(array) in asked else np.zeros(array.shape, array.dtype) for array in arrays]

    def _local_copy(self) -> str:
        """The path of a copy on the disk, which lasts as long as this object."""
        directory = tempfile.mkdtemp()
        weakref.finalize(self, remove, directory)
        buckets.download(self._path, directory)
        return directory

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


def read_variables(path: str, like: PyTree, sharding: Sharding) -> PyTree:
    """The variables of a checkpoint, on the devices. No other part is read.

    Args:
      path: of the checkpoint's directory.
      like: a tree of arrays or shapes: the structure to read into. Typed random keys become of the kind that is stored.
      sharding: of the leaves.

    Raises:
      ValueError: naming the leaves that differ from the checkpoint's; if a newer version of the library wrote it.
      DamagedCheckpointError: if a file is not as it was written.
      FileNotFoundError: if the checkpoint was removed.
    """
    return _read(path, {"variables": like}, sharding)["variables"]


def read_state(path: str, like: TrainState, sharding: Sharding) -> TrainState:
    """The whole state, on the devices. Arguments and errors as for `read_variables`; `like.rng` must be a key."""
    step = {"global_step": jax.ShapeDtypeStruct((), jnp.int32), "rng": like.rng}
    read = _read(path, {"variables": like.variables, "opt_state": like.opt_state, "step": step}, sharding)
    return TrainState(read["step"]["global_step"], read["variables"], read["opt_state"], read["step"]["rng"])


def stored_variables(path: str) -> PyTree | None:
    """The shapes and dtypes of the variables of a checkpoint, for a model whose init_fn cannot give them.

    None if the variables were not nested dicts with strings for keys, because their structure is not stored then.
    """
    stored = StoredCheckpoint(path)
    if not stored.meta["variables_are_plain"]:
        return None
    variables = stored.parts["variables"]
    for names, impl in stored.meta["keys"]["variables"]:
        put(variables, names, parts.keys_like(_leaf(variables, names).shape[:-1], impl))
    return unescape(variables)


def read_positions(path: str) -> list[str | None]:
    """The encoded position of the input of each process that wrote the checkpoint; None for one that has none."""
    stored = StoredCheckpoint(path)
    arrays = stored.load_on_host([stored.parts["input"][f"process_{i}"] for i in range(len(stored.parts["input"]))])
    return [array.tobytes().decode().strip() or None for array in arrays]


def _read(path: str, likes: dict[str, PyTree], sharding: Sharding) -> dict[str, PyTree]:
    stored = StoredCheckpoint(path)
    likes = {part: parts.with_key_impls(like, stored.meta["keys"][part]) for part, like in likes.items()}
    forms = {part: parts.stored_form(like) for part, like in likes.items()}
    problems = [problem for part, form in forms.items() for problem in _differences(form, stored.parts[part], part)]
    then, now = stored.meta["default_prng_impl"], parts.default_key_impl()
    if problems and then != now and all("uint32[" in problem for problem in problems):
        raise ValueError(
            f"the checkpoint {path} holds random keys of another kind: {'; '.join(problems)}. It was written where the "
            f"default PRNG implementation was {then!r}; here it is {now!r}. Set JAX_DEFAULT_PRNG_IMPL={then}, or make "
            "keys with jax.random.key(seed), which keep their kind."
        )
    if problems:
        raise ValueError(
            f"the checkpoint {path} is of another model: {'; '.join(problems)}. Use another model_dir, or the model "
            "and optimizer that wrote it; to start from its weights alone, load them in Scaffold(init_fn=...)."
        )
    loaded = stored.load(forms, sharding)
    return {part: _restored(like, loaded.get(part, {}), sharding) for part, like in likes.items()}


def _restored(like: PyTree, loaded: PyTree, sharding: Sharding) -> PyTree:
    """The tree of `like` with the leaves of nested dicts under escaped names."""

    def restored(path: KeyPath[Hashable], leaf: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
        if 0 in leaf.shape:
            return jnp.zeros(leaf.shape, leaf.dtype, device=sharding)
        array: jax.Array = _leaf(loaded, escaped_path(path))
        return jax.random.wrap_key_data(array, impl=parts.key_impl(leaf)) if is_key(leaf) else array

    return jax.tree_util.tree_map_with_path(restored, like)


def _leaf(tree: PyTree, names: list[str]) -> PyTree:
    return functools.reduce(operator.getitem, names, tree)


def _differences(form: PyTree, stored: PyTree, part: str) -> list[str]:
    """What differs in names, shapes and dtypes between the model and the checkpoint, one sentence for each leaf."""
    where = "" if part == "variables" else f"{part}/"
    want, have = (
        {name: describe_array(leaf) for name, leaf in named_leaves(unescape(tree)).items()} for tree in (form, stored)
    )
    out = [f"{where}{name} is not in the checkpoint" for name in want if name not in have]
    out += [f"{where}{name} is in the checkpoint only" for name in have if name not in want]
    differing = [name for name in want if name in have and have[name] != want[name]]
    return out + [f"{where}{name} is {have[name]} in the checkpoint, {want[name]} in the model" for name in differing]
