"""Values that are the same on all shards: how they are made, and how `shard_map` learns which are."""

import jax
import jax.numpy as jnp

from jaxspec._src.base.arrays import is_key
from jaxspec._src.base.types import PyTree
from jaxspec._src.step.axis import SHARD_AXIS, mean_over_shards, shard_axis_is_bound, shard_index, sum_over_shards


def same_on_all_shards(tree: PyTree, *, keep_equal: bool = False) -> PyTree:
    """Makes each leaf the same on every shard: floating and complex leaves are averaged, others take shard 0's value.

    Args:
      keep_equal: whether a leaf that is equal on all shards keeps its exact value. The plain mean may round: the sum of
        equal values is divided by their number, which need not be a power of two.
    """

    def one(x: jax.Array) -> PyTree:
        if jnp.issubdtype(x.dtype, jnp.inexact) and not keep_equal:
            return mean_over_shards(x)
        first = of_shard_0(x)
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return first
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
    """Proves to `shard_map` that the leaves are the same on all shards, which they are; elsewhere a no-op. See `varying`."""
    return jax.tree.map(lambda x: of_shard_0(x) if _varies(x) else x, tree)


def _varies(x: jax.Array) -> bool:
    """Whether `shard_map` tracks which arrays vary over shards, and `x` does."""
    kind = getattr(jax.typeof(x), "manual_axis_type", None)
    return kind is not None and SHARD_AXIS in kind.varying
