"""The axis that a step is mapped over."""

import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .arrays import is_key
from .debugging import debugging

_logger = logging.getLogger("jaxspec")

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
    several = shard_axis_is_bound() and jax.lax.axis_size(SHARD_AXIS) > 1
    return jax.lax.axis_index(SHARD_AXIS) if several else 0


def mean_over_shards(x: Any) -> Any:
    """The mean over shards of each leaf; the leaves themselves where the axis is not bound."""
    return jax.lax.pmean(x, SHARD_AXIS) if shard_axis_is_bound() else x


def sum_over_shards(x: Any) -> Any:
    """The sum over shards of each leaf; the leaves themselves where the axis is not bound."""
    return jax.lax.psum(x, SHARD_AXIS) if shard_axis_is_bound() else x


def bind_shard_axis(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` with `SHARD_AXIS` bound: as it is inside a mapping over that axis, over an axis of one elsewhere.

    The arguments and results are those of `fn`: nothing is mapped, so the program is that of `fn` alone. Under
    `jax.disable_jit()` the axis stays unbound as long as `fn` does without: a mapping would hide the values from it.
    """

    def bound(*args: Any, **kwargs: Any) -> Any:
        if shard_axis_is_bound():
            return fn(*args, **kwargs)
        if debugging():
            try:
                return fn(*args, **kwargs)
            except NameError as error:
                if SHARD_AXIS not in str(error):
                    raise
                _logger.warning(
                    "jax.disable_jit: the code uses the axis %r (%s), so it is mapped, and sees no values.",
                    SHARD_AXIS,
                    error,
                )

        # Both by position: vmap maps what it is given by keyword, whatever in_axes says.
        def call(args: Any, kwargs: Any) -> Any:
            return fn(*args, **kwargs)

        mapped = jax.vmap(call, in_axes=None, axis_name=SHARD_AXIS, axis_size=1)
        return jax.tree.map(lambda x: x[0], mapped(args, kwargs))

    return bound


def same_on_all_shards(tree: Any) -> Any:
    """Makes each leaf the same on every shard: inexact ones are averaged, others take shard 0's value."""

    def one(x: Any) -> Any:
        if jnp.issubdtype(x.dtype, jnp.inexact):
            return mean_over_shards(x)
        return of_shard_0(x)

    return jax.tree.map(one, tree)


def of_shard_0(tree: Any) -> Any:
    """Shard 0's value of each leaf, on every shard."""
    if not shard_axis_is_bound():
        return tree

    def one(x: Any) -> Any:
        if is_key(x):
            return jax.random.wrap_key_data(one(jax.random.key_data(x)), impl=jax.random.key_impl(x))
        return jax.lax.all_gather(x, SHARD_AXIS)[0]

    return jax.tree.map(one, tree)
