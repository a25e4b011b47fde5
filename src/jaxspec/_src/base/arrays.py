"""What counts as an array, what the leaf of a tree is called, and which values fit its dtype."""

from collections.abc import Hashable, Mapping
from typing import TypeGuard

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec._src.base.types import AnyFunction, Array, DType, PyTree


def is_array(value: object) -> TypeGuard[Array]:
    """Whether `value` is an array of JAX or NumPy (scalars with a dtype included), traced or concrete."""
    return isinstance(value, jax.Array | np.ndarray | np.generic | jax.core.Tracer)


def is_tracer(value: object) -> bool:
    """Whether `value` is an array of a program that is still being traced."""
    return isinstance(value, jax.core.Tracer)


def is_key(value: Array | jax.ShapeDtypeStruct) -> bool:
    """Whether an array, or an abstract array, holds typed PRNG keys."""
    return bool(jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key))


def key_data(tree: PyTree) -> PyTree:
    """The tree with the data of its random keys in their place."""

    def data(leaf: Array | jax.ShapeDtypeStruct) -> Array | jax.ShapeDtypeStruct:
        if not hasattr(leaf, "dtype") or not is_key(leaf):
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            shape: jax.ShapeDtypeStruct = jax.eval_shape(jax.random.key_data, leaf)
            return shape
        return jax.random.key_data(leaf)

    return jax.tree.map(data, tree)


def key_name(key: Hashable) -> str:
    """One key of a key path as a string."""
    return jax.tree_util.keystr((key,), simple=True)


def path_name(path: tuple[Hashable, ...]) -> str:
    """A key path of JAX, such as `jax.tree_util.tree_map_with_path` passes, as `params/Dense_0/kernel`.

    So a mask for weight decay is `tree_map_with_path(lambda path, _: path_name(path).endswith("kernel"), params)`.
    """
    return "/".join(map(key_name, path))


def named_leaves(tree: PyTree) -> dict[str, PyTree]:
    """The leaves of a tree by their path names, such as `params/Dense_0/kernel`, in the order of the tree.

    `named_leaves(variables)` has the names that checkpoints and `TPUEstimator.get_variable_names` use.

    Where two paths have one name (`{"a/b": x, "a": {"b": y}}`), a slash within a key is written `%2F` in all of them.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {path_name(path): leaf for path, leaf in leaves}
    if len(named) < len(leaves):
        named = {
            "/".join(key_name(key).replace("%", "%25").replace("/", "%2F") for key in path): leaf
            for path, leaf in leaves
        }
    return named


def put(tree: dict[str, PyTree], names: list[str], leaf: PyTree) -> None:
    """Puts a leaf into nested dicts."""
    *parents, last = names
    for name in parents:
        tree = tree.setdefault(name, {})
    tree[last] = leaf


def describe_array(value: object) -> str:
    """The dtype and shape of an array, such as `float32[8,10]`; the repr of anything else."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    return repr(value)


def describe_leaves(leaves: Mapping[str, object]) -> str:
    """Named leaves as `x: float32[8,10], y: int32[8]`."""
    return ", ".join(f"{name}: {describe_array(leaf)}" for name, leaf in leaves.items())


def at_least_float32(dtype: DType) -> np.dtype:
    """float32 for a narrower floating dtype, else the dtype. (`jnp.promote_types` refuses under strict promotion.)"""
    dtype = np.dtype(dtype)
    return dtype if dtype.itemsize >= 4 else np.dtype(np.float32)


_KINDS = (jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)
"""Each kind of array takes Python numbers of the kinds before it, as everywhere in JAX."""


def fits(value: PyTree, dtype: DType, *, exactly: bool) -> bool:
    """Whether `value`, an array or a number, may be stored in a leaf of the variables, which keeps its dtype.

    A float never goes into an integer, nor a complex number into a float. A Python number has no width. A key fits
    only keys of the same kind.

    Args:
      exactly: the kind of number must be the same, and `dtype` no narrower. Without x64, 64 bits count as 32: JAX
        itself converts NumPy arrays so.
    """
    try:
        got: DType = jnp.result_type(value)
    except TypeError:  # no array at all
        return False
    if got == dtype:
        return _in_range(value, dtype)
    if any(jnp.issubdtype(x, jax.dtypes.extended) for x in (got, dtype)):
        return False
    got_kind, kind = (next(i for i, kind in enumerate(_KINDS) if jnp.issubdtype(x, kind)) for x in (got, dtype))
    if type(value) in (bool, int, float, complex) or not exactly:
        return got_kind <= kind
    return got_kind == kind and _is_wider(dtype, got)


def _is_wider(dtype: DType, other: DType) -> bool:
    limits: AnyFunction = jnp.iinfo if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo
    wide, narrow = limits(dtype), limits(other)
    has_digits = limits is jnp.iinfo or wide.nmant >= narrow.nmant
    return bool(wide.min <= narrow.min and narrow.max <= wide.max and has_digits)


def _in_range(value: PyTree, dtype: DType) -> bool:
    """Whether only digits are lost, and no range, where 64 bits become 32."""
    if isinstance(value, jax.Array) or np.asarray(value).dtype == dtype:
        return True
    with np.errstate(over="ignore"):
        stored = np.asarray(value).astype(dtype)
    if jnp.issubdtype(dtype, jnp.integer):
        return bool((stored == value).all())
    return bool((np.isfinite(stored) == np.isfinite(value)).all())
