"""A value for a leaf of the variables, whose dtype stays as it is."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_KINDS = (jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)
"""Each takes Python numbers of those before it, as everywhere in JAX."""


def fits(value: Any, dtype: Any, *, exactly: bool) -> bool:
    """Whether `value` may be stored in a leaf of this dtype.

    A float never goes into an integer, nor a complex number into a float. With `exactly` the kind of number must be the
    same and the dtype of the leaf no narrower, 64 bits counting as 32 where JAX has no 64: it makes that of a NumPy
    array itself. A Python number has no width. A key goes with keys of its own kind.
    """
    try:
        got: Any = jnp.result_type(value)
    except TypeError:  # no array at all
        return False
    if got == dtype:
        return _in_range(value, dtype)
    if any(jnp.issubdtype(x, jax.dtypes.extended) for x in (got, dtype)):
        return False
    kinds = [next(i for i, kind in enumerate(_KINDS) if jnp.issubdtype(x, kind)) for x in (got, dtype)]
    if type(value) in (bool, int, float, complex) or not exactly:
        return kinds[0] <= kinds[1]
    return kinds[0] == kinds[1] and _is_wider(dtype, got)


def _is_wider(dtype: Any, other: Any) -> bool:
    limits: Any = jnp.iinfo if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo
    wide, narrow = limits(dtype), limits(other)
    digits = limits is jnp.iinfo or wide.nmant >= narrow.nmant
    return bool(wide.min <= narrow.min and narrow.max <= wide.max and digits)


def _in_range(value: Any, dtype: Any) -> bool:
    """Whether nothing but digits is lost where 64 bits become 32."""
    if isinstance(value, jax.Array) or np.asarray(value).dtype == dtype:
        return True
    with np.errstate(over="ignore"):
        stored = np.asarray(value).astype(dtype)
    if jnp.issubdtype(dtype, jnp.integer):
        return bool((stored == value).all())
    return bool((np.isfinite(stored) == np.isfinite(value)).all())
