"""Variables that take the place of others."""

from typing import Any

import jax
import jax.numpy as jnp

from .arrays import describe_array, named_leaves


def checked_like(expected: Any, got: Any, what: str) -> Any:
    """`got` as JAX arrays in the tree of `expected`; ValueError names the leaves whose shape or dtype differs."""
    want, have = named_leaves(expected), named_leaves(got)
    problems = [f"{name}: missing, expected {describe_array(want[name])}" for name in want if name not in have]
    problems += [f"{name}: unexpected, got {describe_array(have[name])}" for name in have if name not in want]
    for name in want:
        if name in have and jnp.shape(have[name]) != jnp.shape(want[name]):
            problems.append(f"{name}: got {describe_array(have[name])}, expected {describe_array(want[name])}")
    if problems:
        raise ValueError(f"{what}: " + "; ".join(problems) + ". Keep names and shapes as they are.")
    leaves = [_as_dtype(have[name], want[name].dtype) for name in want]
    return jax.tree.unflatten(jax.tree.structure(expected), leaves)


def _as_dtype(x: Any, dtype: Any) -> Any:
    return x if isinstance(x, jax.Array) and x.dtype == dtype else jnp.asarray(x, dtype)
