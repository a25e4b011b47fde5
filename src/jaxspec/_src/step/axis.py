"""The axis that a step is mapped over, and reductions over it."""

import logging
from collections.abc import Callable
from typing import ParamSpec

import jax

from jaxspec._src.base.types import PyTree, T
from jaxspec._src.step.debugging import debugging

_logger = logging.getLogger("jaxspec")
P = ParamSpec("P")

SHARD_AXIS = "shards"
"""Name of the mapped axis: one index for each device. Bound in every mode, of size 1 on one device."""


def shard_axis_is_bound() -> bool:
    """Whether the code being traced is mapped over `SHARD_AXIS`."""
    try:
        jax.lax.axis_size(SHARD_AXIS)
    except NameError:
        return False
    return True


def shard_index() -> jax.Array | int:
    """The index of this shard along `SHARD_AXIS`, an int32 scalar."""
    # A constant where there is one shard: `axis_index` would give every array that meets it another axis.
    several = shard_axis_is_bound() and jax.lax.axis_size(SHARD_AXIS) > 1
    return jax.lax.axis_index(SHARD_AXIS) if several else 0


def mean_over_shards(tree: PyTree) -> PyTree:
    """The mean over shards of each leaf; the leaves themselves where the axis is not bound."""
    return jax.lax.pmean(tree, SHARD_AXIS) if shard_axis_is_bound() else tree


def sum_over_shards(tree: PyTree) -> PyTree:
    """The sum over shards of each leaf; the leaves themselves where the axis is not bound."""
    return jax.lax.psum(tree, SHARD_AXIS) if shard_axis_is_bound() else tree


def bind_shard_axis(fn: Callable[P, T]) -> Callable[P, T]:
    """`fn` with `SHARD_AXIS` bound: `fn` itself inside a mapping over that axis, elsewhere with an axis of size 1.

    The arguments and results are those of `fn`: nothing is mapped, so the program is that of `fn` alone. Under
    `jax.disable_jit()` the axis is bound only if `fn` uses it, because a mapping hides the values from `fn`.
    """

    bare: Callable[..., T] = fn

    def bound(*args: P.args, **kwargs: P.kwargs) -> T:
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
        def call(args: tuple[object, ...], kwargs: dict[str, object]) -> T:
            return bare(*args, **kwargs)

        mapped = jax.vmap(call, in_axes=None, axis_name=SHARD_AXIS, axis_size=1)
        result: T = jax.tree.map(lambda x: x[0], mapped(args, kwargs))
        return result

    return bound
