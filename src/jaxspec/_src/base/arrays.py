"""What counts as an array, and what the leaf of a tree is called."""

from collections.abc import Hashable
from typing import TypeGuard

import jax
import numpy as np

from jaxspec._src.base.types import Array, DType, PyTree


def is_array(value: object) -> TypeGuard[Array]:
    """Whether `value` is an array of JAX or NumPy (scalars with a dtype included), traced or concrete."""
    return isinstance(value, jax.Array | np.ndarray | np.generic | jax.core.Tracer)


def is_tracer(value: object) -> bool:
    """Whether `value` is an array of a program that is still being traced."""
    return isinstance(value, jax.core.Tracer)


def is_key(value: Array | jax.ShapeDtypeStruct) -> bool:
    """Whether an array, or an abstract array, holds typed PRNG keys."""
    return bool(jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key))


def key_name(key: Hashable) -> str:
    """One key of a key path as a string."""
    return jax.tree_util.keystr((key,), simple=True)


def path_name(path: tuple[Hashable, ...]) -> str:
    """A key path as `params/Dense_0/kernel`."""
    return "/".join(map(key_name, path))


def named_leaves(tree: PyTree) -> dict[str, PyTree]:
    """The leaves of a tree by their path names, in the order of the tree.

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


def describe_array(value: object) -> str:
    """The dtype and shape of an array, such as `float32[8,10]`; the repr of anything else."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    return repr(value)


def at_least_float32(dtype: DType) -> np.dtype:
    """float32 for a narrower floating dtype, else the dtype. (`jnp.promote_types` refuses under strict promotion.)"""
    dtype = np.dtype(dtype)
    return dtype if dtype.itemsize >= 4 else np.dtype(np.float32)
