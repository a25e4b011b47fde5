"""What one checkpoint holds, and how a state becomes that.

The parts are `variables`, `opt_state`, `step` (with the key), `input` (a position for each process) and `meta`. A tree
is stored as nested dicts of names, whatever its nodes are, so a part can be read by its names alone.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec._src.base.arrays import describe_array, is_key, named_leaves
from jaxspec._src.checkpoint import backend, manifest
from jaxspec._src.checkpoint.directory import checkpoint_step
from jaxspec._src.checkpoint.names import decoded, encoded_path, is_plain, nested
from jaxspec._src.step.state import TrainState

FORMAT = 2


def check_names(state: TrainState) -> None:
    """Raises a ValueError that names two leaves which a checkpoint of the state could not tell apart."""
    nested(state.variables)
    nested(state.opt_state)


def write(path: str, state: TrainState, position: str | None, copied: Callable[[], None]) -> None:
    """Writes the parts of a state, and waits until they are whole.

    Args:
      path: the directory to make.
      state: on one device.
      position: of this process's input, encoded, or None.
      copied: called when the state has been copied to the host.
    """
    step = {"global_step": state.step, "rng": state.rng}
    trees = {"variables": state.variables, "opt_state": state.opt_state, "step": step}
    stored = {part: nested(_key_data(tree)) for part, tree in trees.items()}
    parts: dict[str, Any] = {part: _without_empty(tree) for part, tree in stored.items()}
    # As bytes: orbax merges the files of array parts only, and warns about any other part.
    parts["input"] = {f"process_{jax.process_index()}": np.frombuffer((position or "").encode() or b" ", np.uint8)}
    parts["meta"] = {
        "format": FORMAT,
        # The kinds of typed random keys, whose data alone is stored; and that of other keys, which are arrays to JAX.
        "keys": {part: _keys(tree) for part, tree in trees.items()},
        "default_prng_impl": _default_prng_impl(),
        # Arrays of no elements, which orbax does not write.
        "empty": {part: _empty_leaves(tree) for part, tree in stored.items()},
        "variables_are_plain": int(is_plain(state.variables)),  # orbax takes a bool for an array
    }
    backend.save(path, {name: part for name, part in parts.items() if part}, copied)


def read_variables(path: str, like: Any, sharding: Any) -> Any:
    """The variables of a checkpoint, on the devices. Reads that part alone.

    Args:
      like: a tree of arrays or shapes: the structure to read into. Typed random keys are of the kind that was stored.
      sharding: where to put the leaves.

    Raises:
      ValueError: naming the leaves that differ from the checkpoint's.
      DamagedCheckpointError: if a file is not as it was written.
      FileNotFoundError: if the checkpoint was removed.
    """
    return _read(path, {"variables": like}, sharding)["variables"]


def read_state(path: str, like: TrainState, sharding: Any) -> TrainState:
    """The whole state, on the devices. Arguments as in `read_variables`; `like.rng` must be a key."""
    step = {"global_step": jax.ShapeDtypeStruct((), jnp.int32), "rng": like.rng}
    parts = _read(path, {"variables": like.variables, "opt_state": like.opt_state, "step": step}, sharding)
    return TrainState(parts["step"]["global_step"], parts["variables"], parts["opt_state"], parts["step"]["rng"])


def stored_variables(path: str) -> Any:
    """The shapes and dtypes of the variables of a checkpoint, as they were: for models whose init_fn cannot say.

    None where they were not nested dicts with strings for keys: their form is not stored then.
    """
    parts = _parts(path)
    if not parts["meta"]["variables_are_plain"]:
        return None
    kinds = _kinds(parts["meta"], "variables")

    def one(key_path: Any, leaf: Any) -> Any:
        impl = kinds.get(tuple(key.key for key in key_path))
        return leaf if impl is None else _keys_like(leaf.shape[:-1], impl)

    return decoded(jax.tree_util.tree_map_with_path(one, parts["variables"]))


def read_position(path: str) -> str | None:
    """The position of this process's input, encoded, or None."""
    name = f"process_{jax.process_index()}"
    stored = _parts(path)["input"]
    if name not in stored:
        return None
    like = _with_sharding(stored, _on_one_device())
    found = _load(path, {"input": like})["input"][name]
    return np.asarray(found).tobytes().decode().strip() or None


def array_names(path: str) -> dict[str, Any]:
    """Names of all arrays of a checkpoint: `params/...` of the variables, `opt_state/...`, `global_step`.

    The values have `shape` and `dtype`.
    """
    parts = _parts(path)
    return _array_names(decoded(parts["variables"]), decoded(parts["opt_state"]), parts["step"]["global_step"])


def state_arrays(state: TrainState) -> dict[str, Any]:
    """The arrays of a state under the names that `array_names` gives them in a checkpoint."""
    variables, opt_state = (decoded(nested(_key_data(tree))) for tree in (state.variables, state.opt_state))
    return _array_names(variables, opt_state, state.step)


def _array_names(variables: Any, opt_state: Any, step: Any) -> dict[str, Any]:
    """Names that are apart from each other, even if a collection is called as a part of the state."""
    clash = {"opt_state", "global_step"} & set(variables)
    where = {"variables": variables} if clash else variables
    return named_leaves({**where, "opt_state": opt_state, "global_step": step})


def read_array(path: str, name: str) -> np.ndarray:
    """One array of a checkpoint, by its name in `array_names`, on the host."""
    parts = _parts(path)
    trees = {part: parts[part] for part in ("variables", "opt_state", "step")}
    # The same tree with, for each array, where it is.
    places = {
        part: jax.tree_util.tree_map_with_path(lambda key_path, _, part=part: _Place(part, key_path), tree)
        for part, tree in trees.items()
    }
    names = _array_names(decoded(places["variables"]), decoded(places["opt_state"]), places["step"]["global_step"])
    if name not in names:
        raise ValueError(f"the checkpoint {path} has no array {name!r}; the names are {sorted(names)}.")
    place = names[name]
    leaf = _at(trees[place.part], place.key_path)
    if 0 in leaf.shape:
        return np.zeros(leaf.shape, leaf.dtype)
    sharding = _on_one_device()

    def load() -> Any:
        tree = _without_empty(trees[place.part])
        return backend.load_one(
            path,
            place.part,
            tree,
            lambda key_path: key_path == place.key_path,
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        )

    return np.array(_at(_guarded(path, load), place.key_path))


class _Place:
    """Where an array is stored; a leaf."""

    def __init__(self, part: str, key_path: Any) -> None:
        self.part, self.key_path = part, key_path


def _at(tree: Any, key_path: Any) -> Any:
    for key in key_path:
        tree = tree[key.key]
    return tree


def _read(path: str, parts: dict[str, Any], sharding: Any) -> dict[str, Any]:
    stored = _parts(path)
    parts = {part: _of_stored_kind(like, _kinds(stored["meta"], part)) for part, like in parts.items()}
    problems: list[str] = []
    for part, like in parts.items():
        problems += _differences(like, stored[part], part)
    then, now = stored["meta"]["default_prng_impl"], _default_prng_impl()
    if problems and then != now and all("uint32[" in problem for problem in problems):
        raise ValueError(
            f"the checkpoint {path} holds random keys of another kind: {'; '.join(problems)}. It was written where the "
            f"default PRNG implementation was {then!r}; here it is {now!r}. Set JAX_DEFAULT_PRNG_IMPL={then}, or make keys "
            "with jax.random.key(seed), which keep their kind."
        )
    if problems:
        raise ValueError(
            f"the checkpoint {path} is of another model: {'; '.join(problems)}. Use another model_dir, or the model and "
            "optimizer that wrote it; to start from its weights alone, load them in Scaffold(init_fn=...)."
        )
    wanted = {part: _without_empty(nested(_key_data(like))) for part, like in parts.items()}
    loaded = _load(path, {part: _with_sharding(like, sharding) for part, like in wanted.items() if like})
    return {part: _restored(like, loaded.get(part, {}), sharding) for part, like in parts.items()}


def _restored(like: Any, loaded: Any, sharding: Any) -> Any:
    """The tree of `like` with the leaves of nested dicts."""

    def one(path: Any, leaf: Any) -> Any:
        if 0 in leaf.shape:
            return jax.device_put(jnp.zeros(leaf.shape, leaf.dtype), sharding)
        found = loaded
        for name in encoded_path(path):
            found = found[name]
        return jax.random.wrap_key_data(found, impl=_key_impl(leaf)) if is_key(leaf) else found

    return jax.tree_util.tree_map_with_path(one, like)


def _differences(like: Any, stored: Any, part: str) -> list[str]:
    where = "" if part == "variables" else f"{part}/"
    want, have = named_leaves(decoded(nested(_key_data(like)))), named_leaves(decoded(stored))
    out = [f"{where}{name} is not in the checkpoint" for name in want if name not in have]
    out += [f"{where}{name} is in the checkpoint only" for name in have if name not in want]
    for name in want:
        if name in have and (tuple(have[name].shape), have[name].dtype) != (tuple(want[name].shape), want[name].dtype):
            out.append(
                f"{where}{name} is {describe_array(have[name])} in the checkpoint, {describe_array(want[name])} in the model"
            )
    return out


def _parts(path: str) -> dict[str, Any]:
    """The parts of a whole checkpoint with shapes and dtypes for arrays, those of no elements among them; `meta` as JSON."""
    stored: dict[str, Any] = _guarded(path, lambda: dict(backend.metadata(path)))
    stored["meta"] = _load(path, {"meta": None})["meta"]
    for part in ("variables", "opt_state", "step"):
        tree = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), stored.get(part) or {})
        for names, shape, dtype in stored["meta"]["empty"][part]:
            node = tree
            for name in names[:-1]:
                node = node.setdefault(name, {})
            node[names[-1]] = jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))
        stored[part] = tree
    return stored


def _load(path: str, parts: dict[str, Any]) -> dict[str, Any]:
    loaded: dict[str, Any] = _guarded(path, lambda: backend.load(path, parts))
    return loaded


def _guarded(path: str, read: Callable[[], Any]) -> Any:
    """What `read` returns, from files that are as they were written; its errors name the checkpoint."""
    manifest.verify(path, checkpoint_step(path))
    try:
        return read()
    except Exception as error:
        # Whatever it is: the removal of the files beneath it has many faces.
        manifest.raise_if_gone(path, error)
        raise RuntimeError(
            f"the checkpoint {path} is whole, but could not be read: {type(error).__name__}: {error}"
        ) from error


def _empty_leaves(tree: Any) -> list[Any]:
    return [
        [[key.key for key in path], list(leaf.shape), str(leaf.dtype)]
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if 0 in leaf.shape
    ]


def _without_empty(tree: Any) -> Any:
    """Nested dicts without their arrays of no elements, and without dicts that hold nothing else."""
    if not isinstance(tree, dict):
        return tree
    kept = {name: _without_empty(value) for name, value in tree.items()}
    return {
        name: value
        for name, value in kept.items()
        if not (value == {} if isinstance(value, dict) else 0 in value.shape)
    }


def _with_sharding(tree: Any, sharding: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _on_one_device() -> Any:
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _keys(tree: Any) -> list[Any]:
    """[names, kind] of the typed random keys of a tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [[encoded_path(path), str(_key_impl(leaf))] for path, leaf in leaves if is_key(leaf)]


def _kinds(meta: Any, part: str) -> dict[tuple[str, ...], str]:
    return {tuple(names): impl for names, impl in meta["keys"][part]}


def _of_stored_kind(like: Any, kinds: dict[tuple[str, ...], str]) -> Any:
    """The tree with its random keys of the kinds that a checkpoint has there."""

    def one(path: Any, leaf: Any) -> Any:
        impl = kinds.get(tuple(encoded_path(path))) if is_key(leaf) else None
        return leaf if impl is None else _keys_like(leaf.shape, impl)

    return jax.tree_util.tree_map_with_path(one, like)


def _keys_like(shape: tuple[int, ...], impl: str) -> Any:
    one = jax.eval_shape(lambda: jax.random.key(0, impl=impl))
    return jax.ShapeDtypeStruct(shape, one.dtype)


def _default_prng_impl() -> str:
    return str(jax.config.jax_default_prng_impl)  # type: ignore[attr-defined]


def _key_impl(key: Any) -> Any:
    impls: list[Any] = []  # JAX tells it of arrays, traced ones too, but not of shapes
    jax.eval_shape(lambda key: impls.append(jax.random.key_impl(key)), key)
    return impls[0]


def _key_data(tree: Any) -> Any:
    """The tree with the data of its random keys in their place."""

    def one(leaf: Any) -> Any:
        if not is_key(leaf):
            return leaf
        is_abstract = isinstance(leaf, jax.ShapeDtypeStruct)
        return jax.eval_shape(jax.random.key_data, leaf) if is_abstract else jax.random.key_data(leaf)

    return jax.tree.map(one, tree)
