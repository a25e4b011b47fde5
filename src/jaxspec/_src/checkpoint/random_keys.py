"""Typed random keys in a state: a checkpoint holds their data as arrays, and the PRNG implementation of each."""

from collections.abc import Hashable

import jax
from jax.tree_util import KeyPath

from jaxspec._src.base.arrays import is_key
from jaxspec._src.base.types import Array, PyTree
from jaxspec._src.checkpoint.escaped_names import escaped_path


def key_data(tree: PyTree) -> PyTree:
    """The tree with the data of its random keys in their place."""

    def data(leaf: Array | jax.ShapeDtypeStruct) -> Array | jax.ShapeDtypeStruct:
        if not is_key(leaf):
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            shape: jax.ShapeDtypeStruct = jax.eval_shape(jax.random.key_data, leaf)
            return shape
        return jax.random.key_data(leaf)

    return jax.tree.map(data, tree)


def key_impls(tree: PyTree) -> list[tuple[list[str], str]]:
    """(the names of its path, its PRNG implementation) for each random key of a tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(escaped_path(path), str(key_impl(leaf))) for path, leaf in leaves if is_key(leaf)]


def with_key_impls(like: PyTree, impls: list[tuple[list[str], str]]) -> PyTree:
    """The tree of shapes with the given PRNG implementations for those of its random keys that are listed."""
    by_names = {tuple(names): impl for names, impl in impls}

    def stored(path: KeyPath[Hashable], leaf: Array | jax.ShapeDtypeStruct) -> Array | jax.ShapeDtypeStruct:
        impl = by_names.get(tuple(escaped_path(path))) if is_key(leaf) else None
        return leaf if impl is None else keys_like(leaf.shape, impl)

    return jax.tree_util.tree_map_with_path(stored, like)


def keys_like(shape: tuple[int, ...], impl: str) -> jax.ShapeDtypeStruct:
    """The shape and dtype of an array of keys."""
    return jax.ShapeDtypeStruct(shape, jax.eval_shape(lambda: jax.random.key(0, impl=impl)).dtype)


def key_impl(key: jax.Array | jax.ShapeDtypeStruct) -> Hashable:
    """The PRNG implementation of an array of keys, or of its shape and dtype."""
    impls: list[Hashable] = []  # JAX gives it for arrays, also traced ones, but not for shapes

    def trace(key: jax.Array) -> None:
        impls.append(jax.random.key_impl(key))

    jax.eval_shape(trace, key)
    return impls[0]


def default_key_impl() -> str:
    """The PRNG implementation that JAX is configured for."""
    return str(jax.config.jax_default_prng_impl)  # type: ignore[attr-defined]
