"""The axis that a step is mapped over: reductions over it, and values that are the same on all shards."""

import logging
from collections.abc import Callable
from typing import ParamSpec

import jax
import jax.numpy as jnp

from jaxspec._src.base.arrays import is_key
from jaxspec._src.base.types import AnyFunction, PyTree, T
from jaxspec._src.step.jaxprs import debugging

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
    return _reduced(jax.lax.pmean, tree)


def sum_over_shards(tree: PyTree) -> PyTree:
    """The sum over shards of each leaf; the leaves themselves where the axis is not bound."""
    return _reduced(jax.lax.psum, tree)


def _reduced(reduce: AnyFunction, tree: PyTree) -> PyTree:
    if not shard_axis_is_bound():
        return tree
    # On one device XLA would copy each array. (Under vmap a reduction also takes the axis away.)
    alone = jax.sharding.get_abstract_mesh().shape.get(SHARD_AXIS) == 1
    if alone and not any(_varies(x) for x in jax.tree.leaves(tree)):
        return tree
    return reduce(tree, SHARD_AXIS)


def bind_shard_axis(fn: Callable[P, T]) -> Callable[P, T]:
    """`fn` with `SHARD_AXIS` bound: `fn` itself inside a mapping over that axis, elsewhere with an axis of size 1.

    The arguments and results are those of `fn`: nothing is mapped, so the program is that of `fn` alone. Under
    `jax.disable_jit()` the axis is bound only if `fn` uses it, because a mapping hides the values from `fn`.
    """

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
        mapped: AnyFunction = jax.vmap(
            lambda args, kwargs: fn(*args, **kwargs), in_axes=None, axis_name=SHARD_AXIS, axis_size=1
        )
        result: T = jax.tree.map(lambda x: x[0], mapped(args, kwargs))
        return result

    return bound


def same_on_all_shards(tree: PyTree, *, keep_equal: bool = False) -> PyTree:
    """Makes each leaf the same on every shard: floating and complex leaves are averaged, others take shard 0's value.

    Args:
      keep_equal: whether a leaf that is equal on all shards keeps its exact value. The plain mean may round: the sum of
        equal values is divided by their number, which need not be a power of two.
    """

    def one(x: jax.Array) -> PyTree:
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return of_shard_0(x)
        if not keep_equal:
            return mean_over_shards(x)
        first = of_shard_0(x)
        return first + mean_over_shards(x - first)

    return jax.tree.map(one, tree)


def of_shard_0(tree: PyTree) -> PyTree:
    """Shard 0's value of each leaf, on every shard, bit for bit."""
    if not shard_axis_is_bound():
        return tree
    # A sum to which all shards but the first add zeros, and not `all_gather(x)[0]`: shard_map knows that a sum is the
    # same everywhere, and a sum takes no memory for the values of the other shards.
    return jax.tree.map(_of_shard_0, tree)


def _of_shard_0(x: jax.Array) -> jax.Array:
    same: jax.Array
    if is_key(x):
        same = jax.random.wrap_key_data(_of_shard_0(jax.random.key_data(x)), impl=jax.random.key_impl(x))
    elif jnp.issubdtype(x.dtype, jnp.complexfloating):
        same = jax.lax.complex(_of_shard_0(jnp.real(x)), _of_shard_0(jnp.imag(x)))
    elif x.dtype == jnp.bool_:
        same = _of_shard_0(x.astype(jnp.uint32)).astype(jnp.bool_)
    elif jnp.issubdtype(x.dtype, jnp.inexact):  # as bits: -0.0 + 0.0 is 0.0
        bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")
        same = jax.lax.bitcast_convert_type(_of_shard_0(bits), x.dtype)
    elif x.dtype.itemsize < 4:  # not every backend adds small integers
        same = _of_shard_0(x.astype(jnp.int32)).astype(x.dtype)
    else:
        same = sum_over_shards(jnp.where(shard_index() == 0, x, jnp.zeros_like(x)))
    return same


def varying(tree: PyTree) -> PyTree:
    """Marks the leaves as each shard's own for `shard_map`, though they are the same on all shards; elsewhere a no-op.

    With `check_vma=True`, the default, the gradient with respect to an array that is the same on all shards is already
    summed over them. The gradient with respect to a varying array is that of the shard, as under every other mapping.
    """
    if not shard_axis_is_bound() or not _varies(jax.lax.axis_index(SHARD_AXIS)):
        return tree
    return jax.tree.map(lambda x: x if _varies(x) else jax.lax.pcast(x, SHARD_AXIS, to="varying"), tree)


def varying_as(tree: PyTree, like: PyTree) -> PyTree:
    """Marks the leaves as each shard's own where those of `like` are. See `varying`."""
    return jax.tree.map(lambda x, other: varying(x) if _varies(other) else x, tree, like)


def unvarying(tree: PyTree) -> PyTree:
    """Proves to `shard_map` that the leaves are the same on all shards, which they are; elsewhere a no-op. See
    `varying`."""
    return jax.tree.map(lambda x: of_shard_0(x) if _varies(x) else x, tree)


def _varies(x: jax.Array) -> bool:
    """Whether `shard_map` tracks which arrays vary over shards, and `x` does."""
    kind = getattr(jax.typeof(x), "manual_axis_type", None)
    return kind is not None and SHARD_AXIS in kind.varying
