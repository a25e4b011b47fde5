"""What a checkpoint holds: the parts into which a state is taken apart.

The parts are `variables`, `opt_state`, `step` (the global step and the random key), `input` (one position for each
process) and `meta`. A tree is stored as nested dicts of names, whatever its nodes are, so a part can be read by its
names alone. In place of typed random keys it holds their data, and `meta` names the PRNG implementation of each.
"""

from collections.abc import Hashable, Sequence
from typing import TypedDict

import jax
import numpy as np
from jax.tree_util import KeyPath

from jaxspec._src.base.arrays import is_key, key_data, put
from jaxspec._src.base.types import Array, PyTree
from jaxspec._src.checkpoint.escaped_names import escape, escaped_path, is_plain
from jaxspec._src.step.state import TrainState

FORMAT = 2
"""A version that changes what a part holds, so that this one cannot read it, writes a higher number."""


class Meta(TypedDict):
    """The part `meta`, as JSON."""

    format: int
    keys: dict[str, list[tuple[list[str], str]]]
    """For each part (the names of its path, the PRNG implementation) of each typed random key."""
    default_prng_impl: str
    """That of raw keys, which are arrays to JAX."""
    empty: dict[str, list[tuple[list[str], list[int], str]]]
    """For each part (the names of its path, shape, dtype) of each array without elements. orbax leaves these out."""
    variables_are_plain: int
    """Whether the variables are nested dicts with strings for keys. An integer, as orbax takes a bool for an array."""


def check_names(state: TrainState) -> None:
    """Raises a ValueError if a checkpoint of the state could not tell two leaves apart; it names both."""
    escape(state.variables)
    escape(state.opt_state)


def parts_of(state: TrainState, positions: Sequence[str | None]) -> dict[str, PyTree]:
    """The parts to write for a state, and the encoded position of the input of each process."""
    step = {"global_step": state.step, "rng": state.rng}
    trees = {"variables": state.variables, "opt_state": state.opt_state, "step": step}
    stored = {part: stored_form(tree) for part, tree in trees.items()}
    meta: Meta = {
        "format": FORMAT,
        "keys": {part: key_impls(tree) for part, tree in trees.items()},
        "default_prng_impl": default_key_impl(),
        "empty": {part: _empty_leaves(tree) for part, tree in stored.items()},
        "variables_are_plain": int(is_plain(state.variables)),
    }
    # As bytes: orbax merges the files of array parts only, and warns about any other part.
    input_part = {
        f"process_{process}": np.frombuffer((position or "").encode() or b" ", np.uint8)
        for process, position in enumerate(positions)
    }
    return {**without_empty(stored), "input": input_part, "meta": meta}


def stored_form(tree: PyTree) -> dict[str, PyTree]:
    """A tree as nested dicts of arrays under escaped names."""
    return escape(key_data(tree))


def without_empty(tree: PyTree) -> dict[str, PyTree]:
    """Nested dicts without their arrays of no elements, and without dicts that hold nothing else."""
    kept: dict[str, PyTree] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if 0 not in leaf.shape:
            put(kept, [key.key for key in path], leaf)
    return kept


def _empty_leaves(tree: PyTree) -> list[tuple[list[str], list[int], str]]:
    return [
        ([key.key for key in path], list(leaf.shape), str(leaf.dtype))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if 0 in leaf.shape
    ]


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
    jax.eval_shape(lambda key: impls.append(jax.random.key_impl(key)), key)
    return impls[0]


def default_key_impl() -> str:
    """The PRNG implementation that JAX is configured for."""
    return str(jax.config.jax_default_prng_impl)  # type: ignore[attr-defined]
