"""A stored value in the dtype of the variable that takes it."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec._src.base.arrays import describe_array, fits, is_key
from jaxspec._src.base.types import Array
from jaxspec._src.checkpoint.parts import key_impl


def fitted(value: np.ndarray, leaf: Array, what: str) -> Array:
    """The value in the variable's dtype; for a variable of typed random keys, the keys with these data.

    Raises:
      ValueError: for another shape, or a value that the dtype cannot hold. The message begins with `what`.
    """
    if isinstance(leaf, jax.Array) and is_key(leaf):
        data = jax.random.key_data(leaf)
        if (np.shape(value), np.asarray(value).dtype) == (data.shape, data.dtype):
            keys: jax.Array = jax.random.wrap_key_data(jnp.asarray(value), impl=key_impl(leaf))
            return keys
    elif np.shape(value) != leaf.shape:
        raise ValueError(
            f"{what} has the shape {list(np.shape(value))}, and the variable has "
            f"{list(leaf.shape)}. Map it to another variable, or give a converter: "
            "{'NAME': {'VARIABLE': lambda array: array.reshape(...)}}."
        )
    elif fits(value, leaf.dtype, exactly=False):
        with np.errstate(over="ignore"):
            stored: np.ndarray = np.asarray(value).astype(leaf.dtype)
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            is_same = np.isfinite(stored) == np.isfinite(value)
        else:
            is_same = stored == value
        if np.all(is_same):
            return stored
    raise ValueError(
        f"{what} is {describe_array(value)}, which does not fit {describe_array(leaf)}. Give the variable another "
        "dtype, or convert it: init_from_checkpoint(path, {'NAME': {'VARIABLE': lambda array: ...}})."
    )
