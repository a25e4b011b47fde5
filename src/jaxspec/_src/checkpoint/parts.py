"""What a checkpoint holds: the parts into which a state is taken apart.

The parts are `variables`, `opt_state`, `step` (the global step and the random key), `input` (one position for each
process) and `meta`. A tree is stored as nested dicts of names, whatever its nodes are, so a part can be read by its
names alone.
"""

from typing import TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec._src.base.types import PyTree
from jaxspec._src.checkpoint.escaped_names import escape, is_plain
from jaxspec._src.checkpoint.random_keys import default_key_impl, key_data, key_impls
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


def parts_of(state: TrainState, position: str | None) -> dict[str, PyTree]:
    """The parts to write for a state on one device, and the encoded position of this process's input."""
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
    input_part = {f"process_{jax.process_index()}": np.frombuffer((position or "").encode() or b" ", np.uint8)}
    parts = {**{part: without_empty(tree) for part, tree in stored.items()}, "input": input_part, "meta": meta}
    return {name: part for name, part in parts.items() if part}


def stored_form(tree: PyTree) -> dict[str, PyTree]:
    """A tree as nested dicts of arrays under escaped names."""
    return escape(key_data(tree))


def without_empty(tree: PyTree) -> PyTree:
    """Nested dicts without their arrays of no elements, and without dicts that hold nothing else."""
    if not isinstance(tree, dict):
        return tree
    kept = {name: without_empty(value) for name, value in tree.items()}
    return {
        name: value
        for name, value in kept.items()
        if not (value == {} if isinstance(value, dict) else 0 in value.shape)
    }


def with_empty(tree: PyTree, leaves: list[tuple[list[str], list[int], str]]) -> PyTree:
    """Nested dicts of shapes, which are changed, with those of the arrays of no elements."""
    for (*parents, last), shape, dtype in leaves:
        node = tree
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))
    return tree


def _empty_leaves(tree: PyTree) -> list[tuple[list[str], list[int], str]]:
    return [
        ([key.key for key in path], list(leaf.shape), str(leaf.dtype))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if 0 in leaf.shape
    ]
