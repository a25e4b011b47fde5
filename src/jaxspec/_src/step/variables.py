"""New values of variables: checked against the old ones, and converted to their dtypes."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxspec._src.base.arrays import describe_array, named_leaves
from jaxspec._src.base.dtype_fits import fits
from jaxspec._src.base.types import PyTree, Variables


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
    for name in want:
        if name not in have:
            continue
        same_shape = jnp.shape(have[name]) == jnp.shape(want[name])
        if same_shape and fits(have[name], want[name].dtype, exactly=same_dtypes):
            continue
        problems.append(f"{name}: got {describe_array(have[name])}, expected {describe_array(want[name])}")
        if same_shape:
            mend = f"Write x.astype({want[name].dtype.name!r}) where that is meant, or let init_fn make the leaf with the other dtype."
    if problems:
        raise ValueError(f"{what}: " + "; ".join(problems) + f". {mend}")
    leaves = [
        x if isinstance(x, jax.Array) and x.dtype == leaf.dtype else jnp.asarray(x, leaf.dtype)
        for x, leaf in ((have[name], leaf) for name, leaf in want.items())
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
                f"variables{jax.tree_util.keystr(path)} is no array: {describe_array(leaf)}. Variables hold arrays only."
            ) from None
        return jax.lax.convert_element_type(array, array.dtype)

    return jax.tree_util.tree_map_with_path(one, tree)
