"""Variables that take the place of others."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxspec._src.base.arrays import describe_array, named_leaves
from jaxspec._src.base.dtype_fits import fits


def checked_like(expected: Any, got: Any, what: str, *, same_dtypes: bool = False) -> Any:
    """`got` as JAX arrays in the tree of `expected`; ValueError names the leaves whose shape or dtype differs.

    Args:
      same_dtypes: refuse values of a narrower or another kind of number; without, floats of any width are stored in that of
        `expected`, as a running average in bfloat16 is, and only what is no number of its kind is refused.
    """
    want, have = named_leaves(expected), named_leaves(got)
    problems = [f"{name}: missing, expected {describe_array(want[name])}" for name in want if name not in have]
    problems += [f"{name}: unexpected, got {describe_array(have[name])}" for name in have if name not in want]
    mend = "Keep names and shapes as they are."
    for name in want:
        if name not in have:
            continue
        shown = f"{name}: got {describe_array(have[name])}, expected {describe_array(want[name])}"
        if jnp.shape(have[name]) != jnp.shape(want[name]):
            problems.append(shown)
        elif not fits(have[name], want[name].dtype, exactly=same_dtypes):
            problems.append(shown)
            mend = f"Write x.astype({want[name].dtype.name!r}) where that is meant, or let init_fn make the leaf with the other dtype."
    if problems:
        raise ValueError(f"{what}: " + "; ".join(problems) + f". {mend}")
    leaves = [_as_dtype(have[name], want[name].dtype) for name in want]
    return jax.tree.unflatten(jax.tree.structure(expected), leaves)


def _as_dtype(x: Any, dtype: Any) -> Any:
    return x if isinstance(x, jax.Array) and x.dtype == dtype else jnp.asarray(x, dtype)
