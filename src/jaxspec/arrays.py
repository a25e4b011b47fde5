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


def path_name(path: tuple[Any, ...]) -> str:
    """A key path as `params/Dense_0/kernel`."""
    return "/".join(jax.tree_util.keystr((key,), simple=True) for key in path)


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their path names, in tree order."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def describe_array(value: Any) -> str:
    """dtype and shape, as `float32[8,10]`."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    return repr(value)
