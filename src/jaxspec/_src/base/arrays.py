"""What counts as an array, and how a leaf of a tree is named."""

from typing import Any

import jax
import numpy as np


def is_array(value: Any) -> bool:
    """Whether `value` is an array of JAX or NumPy (scalars with a dtype included), traced or concrete."""
    return isinstance(value, jax.Array | np.ndarray | np.generic | jax.core.Tracer)


def is_tracer(value: Any) -> bool:
    """Whether `value` is an array of a program that is still being traced."""
    return isinstance(value, jax.core.Tracer)


def is_key(value: Any) -> bool:
    """Whether an array (or its shape and dtype) holds typed PRNG keys."""
    return bool(jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key))


def key_name(key: Any) -> str:
    """One key of a path, as text."""
    return jax.tree_util.keystr((key,), simple=True)


def path_name(path: tuple[Any, ...]) -> str:
    """A key path as `params/Dense_0/kernel`."""
    return "/".join(map(key_name, path))


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their path names, in tree order.

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


def describe_array(value: Any) -> str:
    """dtype and shape, as `float32[8,10]`."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    return repr(value)


def at_least_float32(dtype: Any) -> np.dtype:
    """float32 for a narrower floating dtype. (`jnp.promote_types` refuses where promotion is strict.)"""
    dtype = np.dtype(dtype)
    return dtype if dtype.itemsize >= 4 else np.dtype(np.float32)
