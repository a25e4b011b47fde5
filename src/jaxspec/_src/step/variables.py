"""Checks that new values keep structure and dtype; selects and merges the parameters that are trained."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from jaxspec._src.base.arrays import describe_array, fits, named_leaves, path_name
from jaxspec._src.base.types import PyTree, Variables
from jaxspec._src.spec.train_op import Selection


def checked_like(expected: PyTree, got: PyTree, what: str, *, same_dtypes: bool = False) -> PyTree:
    """`got` as JAX arrays in the tree of `expected`.

    Args:
      what: the beginning of the message of an error.
      same_dtypes: whether values of a wider dtype, or of another kind of number, are refused. If not, floats of any
        width are converted to the dtype of `expected`, as a running average in bfloat16 needs, and only values of
        another kind of number are refused.

    Raises:
      ValueError: names all leaves that are missing or unexpected, or whose shape or dtype differs.
    """
    want, have = named_leaves(expected), named_leaves(got)
    problems = [f"{name}: missing, expected {describe_array(want[name])}" for name in want if name not in have]
    problems += [f"{name}: unexpected, got {describe_array(have[name])}" for name in have if name not in want]
    mend = "Keep names and shapes as they are."
    both = {name: (have[name], leaf) for name, leaf in want.items() if name in have}
    for name, (x, leaf) in both.items():
        same_shape = jnp.shape(x) == jnp.shape(leaf)
        if same_shape and fits(x, leaf.dtype, exactly=same_dtypes):
            continue
        problems.append(f"{name}: got {describe_array(x)}, expected {describe_array(leaf)}")
        if same_shape:
            mend = (
                f"Write x.astype({leaf.dtype.name!r}) where that is meant, "
                f"or let init_fn make the leaf with the other dtype."
            )
    if problems:
        raise ValueError(f"{what}: " + "; ".join(problems) + f". {mend}")
    leaves = [
        x if isinstance(x, jax.Array) and x.dtype == leaf.dtype else jnp.asarray(x, leaf.dtype)
        for x, leaf in both.values()
    ]
    return jax.tree.unflatten(jax.tree.structure(expected), leaves)


def checked_collections(new: object, variables: Variables, source: str) -> Variables:
    """New collections, which must be some of `variables` and keep their structure. `source` begins the messages."""
    if not isinstance(new, Mapping):
        raise TypeError(f"{source} must give a dict of collections such as {{'batch_stats': ...}}, got {new!r}.")
    for name in new:
        if name not in variables:
            raise ValueError(
                f"{source} writes the collection {name!r}, which init_fn never made; it made {sorted(variables)}. "
                "Let init_fn return it too."
            )
    old = {name: variables[name] for name in new}
    checked: Variables = checked_like(old, dict(new), f"{source} does not fit the variables")
    return checked


def strong_arrays(tree: PyTree) -> PyTree:
    """The leaves as JAX arrays without weak types. A Python number would change its type in the first update.

    Raises:
      TypeError: names a leaf that is no array.
    """

    def one(path: tuple[object, ...], leaf: object) -> jax.Array:
        try:
            array = jnp.asarray(leaf)
        except TypeError:
            raise TypeError(
                f"variables{jax.tree_util.keystr(path)} is no array: {describe_array(leaf)}. Variables hold arrays "
                "only."
            ) from None
        return jax.lax.convert_element_type(array, array.dtype)

    return jax.tree_util.tree_map_with_path(one, tree)


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
