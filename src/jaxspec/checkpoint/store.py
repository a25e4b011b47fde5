"""What one checkpoint holds, and how a state becomes that. The only file that says orbax.

The parts are `variables`, `opt_state`, `step` (with the key), `input` (a position for each process) and `meta`. A tree
is stored as nested dicts of names, whatever its nodes are, so a part can be read by its names alone.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..arrays import describe_array, is_key, named_leaves, path_name
from ..steps import TrainState

FORMAT = 1
_ROOT = "value"
"""The name of a tree that is one array."""


def write_async(path: str, state: TrainState, position: str | None) -> Any:
    """Starts to write a checkpoint; returns when the state has been copied to the host.

    Args:
      path: the directory to make. It appears whole or not at all.
      state: on one device.
      position: of this process's input, encoded, or None.

    Returns:
      An object whose `result()` waits for the files and raises what went wrong.
    """
    parts = {
        "variables": _nested(state.variables),
        "opt_state": _nested(state.opt_state),
        "step": _nested({"global_step": state.step, "rng": state.rng}),
        # As bytes: orbax merges the files of array parts only, and warns about any other part.
        "input": {f"process_{jax.process_index()}": np.frombuffer((position or "").encode() or b" ", np.uint8)},
        "meta": {"format": FORMAT, "rng_impl": str(jax.random.key_impl(state.rng))},
    }
    return _orbax().save_checkpointables_async(
        path, {name: part for name, part in parts.items() if part}, overwrite=True
    )


def read_variables(path: str, like: Any, sharding: Any) -> Any:
    """The variables of a checkpoint, on the devices. Reads that part alone.

    Args:
      like: a tree of arrays or shapes: the structure to read into.
      sharding: where to put the leaves.

    Raises:
      ValueError: naming the leaves that differ from the checkpoint's.
    """
    return _read(path, {"variables": like}, sharding)["variables"]


def read_state(path: str, like: TrainState, sharding: Any) -> TrainState:
    """The whole state, on the devices. Arguments as in `read_variables`; of `like`, `rng` must be a key."""
    step = {"global_step": jax.ShapeDtypeStruct((), jnp.int32), "rng": like.rng}
    parts = _read(path, {"variables": like.variables, "opt_state": like.opt_state, "step": step}, sharding)
    return TrainState(parts["step"]["global_step"], parts["variables"], parts["opt_state"], parts["step"]["rng"])


def read_position(path: str) -> str | None:
    """The position of this process's input, encoded, or None."""
    name = f"process_{jax.process_index()}"
    stored = _metadata(path)["input"]
    if name not in stored:
        return None
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), stored)
    stored = _orbax().load_checkpointables(path, {"input": like})["input"][name]
    return np.asarray(stored).tobytes().decode().strip() or None


def array_names(path: str) -> dict[str, Any]:
    """Names of all arrays of a checkpoint: `params/...` of the variables, `opt_state/...`, `global_step`.

    The values have `shape` and `dtype`.
    """
    parts = _metadata(path)
    return _array_names(parts.get("variables", {}), parts.get("opt_state", {}), parts["step"]["global_step"])


def state_arrays(state: TrainState) -> dict[str, Any]:
    """The arrays of a state under the names that `array_names` gives them in a checkpoint."""
    return _array_names(_nested(state.variables), _nested(state.opt_state), state.step)


def _array_names(variables: Any, opt_state: Any, step: Any) -> dict[str, Any]:
    optimizer = {f"opt_state/{name}": leaf for name, leaf in named_leaves(opt_state).items()}
    return {**named_leaves(variables), **optimizer, "global_step": step}


def read_array(path: str, name: str) -> np.ndarray:
    """One array of a checkpoint, by its name in `array_names`, on the host."""
    part, key = ("variables", name)
    if name == "global_step":
        part = "step"
    elif name.startswith("opt_state/"):
        part, key = "opt_state", name.removeprefix("opt_state/")
    ocp = _orbax()
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def wanted(p: Any, leaf: Any) -> Any:
        if path_name(p) != key:
            return ocp.PLACEHOLDER
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    abstract = jax.tree_util.tree_map_with_path(wanted, _metadata(path)[part])
    loaded = ocp.load_checkpointables(path, {part: abstract})[part]
    return np.array(named_leaves(loaded)[key])


def _read(path: str, parts: dict[str, Any], sharding: Any) -> dict[str, Any]:
    stored = _metadata(path)
    problems: list[str] = []
    for part, like in parts.items():
        problems += _differences(named_leaves(_nested(like)), named_leaves(stored.get(part, {})), part)
    if problems:
        raise ValueError(
            f"the checkpoint {path} is of another model: {'; '.join(problems)}. Use another model_dir, or the model and "
            "optimizer that wrote it; to start from its weights alone, load them in Scaffold(init_fn=...)."
        )
    abstract = {
        part: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), _nested(like))
        for part, like in parts.items()
    }
    loaded = _orbax().load_checkpointables(path, {part: like for part, like in abstract.items() if like})
    return {part: _restored(like, named_leaves(loaded.get(part, {}))) for part, like in parts.items()}


def _restored(like: Any, leaves: dict[str, Any]) -> Any:
    """The tree of `like` with leaves from a checkpoint, by name."""

    def one(path: Any, leaf: Any) -> Any:
        found = leaves[path_name(path) or _ROOT]
        return jax.random.wrap_key_data(found, impl=_key_impl(leaf)) if is_key(leaf) else found

    return jax.tree_util.tree_map_with_path(one, like)


def _differences(want: dict[str, Any], have: dict[str, Any], part: str) -> list[str]:
    where = "" if part == "variables" else f"{part}/"
    out = [f"{where}{name} is not in the checkpoint" for name in want if name not in have]
    out += [f"{where}{name} is in the checkpoint only" for name in have if name not in want]
    out += [
        f"{where}{name} is {describe_array(have[name])} in the checkpoint, {describe_array(want[name])} in the model"
        for name in want
        if name in have and (tuple(have[name].shape), have[name].dtype) != (tuple(want[name].shape), want[name].dtype)
    ]
    return out


def _nested(tree: Any) -> dict[str, Any]:
    """A tree as nested dicts of its path's names; keys as their data."""
    out: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        *parents, last = [path_name((key,)) for key in path] or [_ROOT]
        node = out
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = _key_data(leaf) if is_key(leaf) else leaf
    return out


def _key_impl(key: Any) -> Any:
    impls: list[Any] = []  # JAX tells it of arrays, traced ones too, but not of shapes
    jax.eval_shape(lambda key: impls.append(jax.random.key_impl(key)), key)
    return impls[0]


def _key_data(key: Any) -> Any:
    is_abstract = isinstance(key, jax.ShapeDtypeStruct)
    return jax.eval_shape(jax.random.key_data, key) if is_abstract else jax.random.key_data(key)


def _metadata(path: str) -> Any:
    return _orbax().checkpointables_metadata(path).metadata


def _orbax() -> Any:
    import orbax.checkpoint.experimental.v1 as ocp

    return ocp
