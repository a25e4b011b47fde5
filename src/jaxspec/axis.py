"""The axis that a step is mapped over."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .arrays import is_key

SHARD_AXIS = "shards"
"""Name of the mapped axis: one index for each device. Bound in every mode, of size 1 on one device."""


def shard_axis_is_bound() -> bool:
    """Whether the code being traced is mapped over `SHARD_AXIS`."""
    try:
        jax.lax.axis_size(SHARD_AXIS)
    except NameError:
        return False
    return True


def shard_index() -> Any:
    """The index of this shard along `SHARD_AXIS`, an int32 scalar."""
    # A constant where there is one shard: `axis_index` would give every array that meets it another axis.
    return jax.lax.axis_index(SHARD_AXIS) if jax.lax.axis_size(SHARD_AXIS) > 1 else 0


def bind_shard_axis(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` with `SHARD_AXIS` bound: as it is inside a mapping over that axis, over an axis of one elsewhere.

    The arguments and results are those of `fn`: nothing is mapped, so the program is that of `fn` alone.
    """

    def bound(*args: Any, **kwargs: Any) -> Any:
        if shard_axis_is_bound():
            return fn(*args, **kwargs)

        # Both by position: vmap maps what it is given by keyword, whatever in_axes says.
        def call(args: Any, kwargs: Any) -> Any:
            return fn(*args, **kwargs)

        mapped = jax.vmap(call, in_axes=None, axis_name=SHARD_AXIS, axis_size=1)
        return jax.tree.map(lambda x: x[0], mapped(args, kwargs))

    return bound


def global_mean(values: Any, weights: Any = None) -> jax.Array:
    """The weighted mean of this shard's values, normalised by the weights of all shards.

    `sum(values * weights) / pmean(sum(weights))` over `SHARD_AXIS`: its mean over shards, and the gradient of that,
    are those of the whole batch on one device, however the weights are spread over shards. Where the axis is not
    bound (model_fn called by hand) the mean over shards is left out.

    Args:
      values: per-shard array of any shape, floating.
      weights: array that broadcasts against `values`; None: all ones.

    Returns:
      A scalar of this shard; NaN when all weights of all shards are 0.
    """
    values = jnp.asarray(values)
    weights = jnp.ones_like(values) if weights is None else jnp.broadcast_to(weights, values.shape)
    total = jnp.sum(weights)
    if shard_axis_is_bound():
        total = jax.lax.pmean(total, SHARD_AXIS)
    return jnp.sum(values * weights) / total


def same_on_all_shards(tree: Any) -> Any:
    """Makes each leaf the same on every shard: inexact ones are averaged, others take shard 0's value."""

    def one(x: Any) -> Any:
        if jnp.issubdtype(x.dtype, jnp.inexact):
            return jax.lax.pmean(x, SHARD_AXIS)
        return of_shard_0(x)

    return jax.tree.map(one, tree)


def of_shard_0(tree: Any) -> Any:
    """Shard 0's value of each leaf, on every shard."""

    def one(x: Any) -> Any:
        if is_key(x):
            return jax.random.wrap_key_data(one(jax.random.key_data(x)), impl=jax.random.key_impl(x))
        return jax.lax.all_gather(x, SHARD_AXIS)[0]

    return jax.tree.map(one, tree)
