"""Whether a value may be stored in a leaf of the variables, which keeps its dtype."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec._src.base.types import AnyFunction, DType, PyTree

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
