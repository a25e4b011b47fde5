"""Which leaves of `variables["params"]` a TrainOp trains."""

import jax
import jax.numpy as jnp
import optax

from jaxspec._src.base.arrays import path_name
from jaxspec._src.base.types import PyTree
from jaxspec._src.spec.train_op import Selection


def select(params: PyTree, of: Selection, tree: PyTree = None) -> PyTree:
    """The leaves that are trained, in the structure of `params`, with an `optax.MaskedNode` for each other leaf.

    Leaves that cannot be differentiated (integers, keys) are never trained.

    Args:
      params: `variables["params"]`.
      of: a tuple of keys of `params`, a predicate on the path inside it, or None for all.
      tree: takes the leaves from this tree, of the structure of `params`, instead.
    """
    mask = _mask(params, of)
    values = params if tree is None else tree
    if all(jax.tree.leaves(mask)):
        return values
    return jax.tree.map(lambda trained, value: value if trained else optax.MaskedNode(), mask, values)


def merge(params: PyTree, selected: PyTree) -> PyTree:
    """`params` with the selected leaves replaced: the inverse of `select`."""
    return jax.tree.map(lambda old, new: old if isinstance(new, optax.MaskedNode) else new, params, selected)


def _mask(params: PyTree, of: Selection) -> PyTree:
    """The tree of `params`, with a bool for each leaf: whether it is trained."""
    paths = jax.tree_util.tree_leaves_with_path(params)
    differentiable = [jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for _, leaf in paths]
    structure = jax.tree.structure(params)
    if of is None:
        return jax.tree.unflatten(structure, differentiable)
    if callable(of):
        chosen = [bool(of(path_name(path))) for path, _ in paths]
        known = f"The paths are {[path_name(path) for path, _ in paths]}."
    else:
        keys = [path_name(path[:1]) for path, _ in paths]
        known = f"The keys are {sorted(set(keys))}."
        unknown = [key for key in of if key not in keys]
        if unknown:
            raise ValueError(f"of={list(of)}: variables['params'] has no {unknown[0]!r}. {known}")
        chosen = [key in of for key in keys]
    mask = [a and b for a, b in zip(chosen, differentiable, strict=True)]
    if not any(mask):
        raise ValueError(f"of={of!r} selects nothing of variables['params']. {known}")
    return jax.tree.unflatten(structure, mask)
