"""The axis that a step is mapped over."""

import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxspec._src.base.arrays import is_key
from jaxspec._src.step.debugging import debugging

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


def agreed(tree: Any) -> Any:
    """As `same_on_all_shards`, and exactly the leaf itself where it is the same on every shard already."""

    def one(x: Any) -> Any:
        first = of_shard_0(x)
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return first
        # The sum of equal values, divided by their number, may be another value where that is no power of two.
        return first + mean_over_shards(x - first)

    return jax.tree.map(one, tree)


def of_shard_0(tree: Any) -> Any:
    """Shard 0's value of each leaf, on every shard, bit for bit."""
    if not shard_axis_is_bound():
        return tree
    # A sum over shards that all but the first add zeros to, and not `all_gather(x)[0]`: shard_map knows of a sum that
    # it is the same everywhere, and it takes no memory for the values of the others.
    return jax.tree.map(_of_shard_0, tree)


def _of_shard_0(x: Any) -> Any:
    if is_key(x):
        return jax.random.wrap_key_data(_of_shard_0(jax.random.key_data(x)), impl=jax.random.key_impl(x))
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return jax.lax.complex(_of_shard_0(jnp.real(x)), _of_shard_0(jnp.imag(x)))
    if x.dtype == jnp.bool_:
        return _of_shard_0(x.astype(jnp.uint32)).astype(jnp.bool_)
    if jnp.issubdtype(x.dtype, jnp.inexact):  # as bits: -0.0 + 0.0 is 0.0
        bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")
        return jax.lax.bitcast_convert_type(_of_shard_0(bits), x.dtype)
    if x.dtype.itemsize < 4:  # not every backend adds small integers
        return _of_shard_0(x.astype(jnp.int32)).astype(x.dtype)
    mine = shard_index() == 0
    return jax.lax.psum(jnp.where(mine, x, jnp.zeros_like(x)), SHARD_AXIS)


def varying(tree: Any) -> Any:
    """Tells `shard_map` to take the leaves for each shard's own, though they are the same on all; elsewhere a no-op.

    With `check_vma=True`, its default, the gradient with respect to what is the same on all shards is summed over them
    already; with respect to what varies it is that of the shard, as under every other mapping.
    """
    if not shard_axis_is_bound() or not _varies(jax.lax.axis_index(SHARD_AXIS)):
        return tree
    return jax.tree.map(lambda x: x if _varies(x) else jax.lax.pcast(x, SHARD_AXIS, to="varying"), tree)


def varying_as(tree: Any, like: Any) -> Any:
    """The leaves, taken for each shard's own where those of `like` are. See `varying`."""
    return jax.tree.map(lambda x, other: varying(x) if _varies(other) else x, tree, like)


def unvarying(tree: Any) -> Any:
    """Proves to `shard_map` that the leaves are the same on all shards, as they are; elsewhere a no-op. See `varying`."""
    return jax.tree.map(lambda x: of_shard_0(x) if _varies(x) else x, tree)


def _varies(x: Any) -> bool:
    """Whether `shard_map` keeps account of what varies over shards, and `x` does."""
    kind: Any = getattr(jax.typeof(x), "manual_axis_type", None)
    return kind is not None and SHARD_AXIS in kind.varying
