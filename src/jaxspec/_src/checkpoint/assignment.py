"""Stored arrays as the values of fresh variables, by a map of names as TensorFlow's `init_from_checkpoint` has it."""

import difflib
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec._src.base.arrays import describe_array, fits, is_array, is_key, named_leaves
from jaxspec._src.base.types import Array, Variables
from jaxspec._src.checkpoint.parts import key_impl

Converter: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""From the array of a checkpoint to the value of a variable."""
Target: TypeAlias = str | Mapping[str, Converter]
"""A variable, a scope that ends with a slash, or several variables with what converts the array for each."""

_logger = logging.getLogger("jaxspec")
MOST_NAMES = 8
"""As many a message lists."""


def check_assignment_map(assignment_map: Mapping[str, Target]) -> None:
    """Raises unless the map is one of names to names, or to converters by name."""
    instead = (
        "Write {'dense/kernel': 'params/Dense_0/kernel'}, {'scope/': 'params/scope/'}, or "
        "{'dense/kernel': {'params/Dense_0/kernel': converter}}."
    )
    if not isinstance(assignment_map, Mapping) or not assignment_map:
        raise TypeError(
            "init_from_checkpoint: assignment_map must be a dict of names in the checkpoint to names of variables, got "
            f"{assignment_map!r}. {instead}"
        )
    for source, target in assignment_map.items():
        if isinstance(target, str) and isinstance(source, str):
            if source.endswith("/") != target.endswith("/"):
                raise ValueError(
                    f"init_from_checkpoint: the assignment map has {source!r}: {target!r}. A scope, with a slash at "
                    f"its end, goes to a scope, and a name to a name. {instead}"
                )
        elif not (isinstance(source, str) and are_converters(target)):
            raise TypeError(f"init_from_checkpoint: the assignment map has {source!r}: {target!r}. {instead}")


def are_converters(target: object) -> bool:
    """Whether an entry of a map has converters by name, one or more."""
    if not isinstance(target, Mapping) or not target:
        return False
    return all(isinstance(name, str) and callable(convert) for name, convert in target.items())


def assigned(
    variables: Variables,
    assignment_map: Mapping[str, Target],
    names: Collection[str],
    read: Callable[[Collection[str]], Mapping[str, np.ndarray]],
    path: str,
) -> Variables:
    """The variables with stored values in those that the map names. They keep their shapes and dtypes.

    Args:
      names: those in the checkpoint.
      read: called once with the names that are needed.
      path: of the checkpoint, for messages.

    Raises:
      ValueError: for a name that is not in the checkpoint, or not in the variables; for a variable that the map names
        twice; for a value of another shape, or of a dtype that the variable cannot hold.
    """
    leaves = named_leaves(variables)
    sources = sources_of(assignment_map, leaves)
    missing = {name: source for name, (source, _) in sources.items() if source not in names}
    if missing:
        absent = listed([f"{source!r} (for {name})" for name, source in missing.items()])
        similar = _similar(next(iter(missing.values())), names)
        raise ValueError(
            f"init_from_checkpoint: not found in the checkpoint {path}: {absent}. Similar names there: {similar}."
        )
    stored = read({source for source, _ in sources.values()})
    values = {}
    for name, (source, convert) in sources.items():
        what = f"{name} from {source!r} of {path}"
        value = stored[source] if convert is None else _converted(stored[source], convert, leaves[name], what)
        values[name] = fitted(value, leaves[name], f"init_from_checkpoint: {what}")
    fresh = [name for name in leaves if name not in values]
    _logger.info(
        "%d variables take their values from %s. Those of init_fn stay in %s.",
        len(values),
        path,
        listed(fresh) or "none",
    )
    new = [values.get(name, leaf) for name, leaf in leaves.items()]
    replaced: Variables = jax.tree.unflatten(jax.tree.structure(variables), new)
    return replaced


def sources_of(
    assignment_map: Mapping[str, Target], variables: Collection[str]
) -> dict[str, tuple[str, Converter | None]]:
    """By the name of each variable that the map names, the name of its source and what converts it."""
    sources: dict[str, tuple[str, Converter | None]] = {}
    for source, target in assignment_map.items():
        pairs = _pairs(source, target, variables)
        unknown = next((name for name in pairs if name not in variables), None if pairs else str(target))
        if unknown is not None:
            raise ValueError(
                f"init_from_checkpoint: the assignment map has {source!r}: {unknown!r}, and there is no variable "
                f"{unknown!r}. Similar names: {_similar(unknown, variables)}. All names: {listed(variables)}."
            )
        for name, found in pairs.items():
            if name in sources:
                raise ValueError(
                    f"init_from_checkpoint: {name} would get its value from {sources[name][0]!r} and from "
                    f"{found[0]!r}. Let one entry of the assignment map name it."
                )
            sources[name] = found
    return sources


def _pairs(source: str, target: Target, variables: Collection[str]) -> Mapping[str, tuple[str, Converter | None]]:
    """What one entry of the map says, for each variable."""
    if not isinstance(target, str):
        return {name: (source, convert) for name, convert in target.items()}
    if not target.endswith("/"):
        return {target: (source, None)}
    prefix, scope = source.removeprefix("/"), target.removeprefix("/")  # "/" alone is everything
    below = {name: (prefix + name.removeprefix(scope), None) for name in variables if name.startswith(scope)}
    return below or {
        name: (f"{collection}/{prefix}{rest.removeprefix(scope)}", None)
        for name in variables
        for collection, _, rest in [name.partition("/")]
        if rest.startswith(scope)
    }


def _converted(array: np.ndarray, convert: Converter, leaf: Array, what: str) -> np.ndarray:
    try:
        value = convert(array)
    except Exception as error:
        error.add_note(f"init_from_checkpoint: this is the error of the converter for {what}, {describe_array(array)}.")
        raise
    if not is_array(value):
        raise ValueError(
            f"init_from_checkpoint: {what}: its converter returned {value!r}, and not an array of the shape "
            f"{list(leaf.shape)}."
        )
    return value


def fitted(value: np.ndarray, leaf: Array, what: str) -> Array:
    """The value in the variable's dtype; for a variable of typed random keys, the keys with these data.

    Raises:
      ValueError: for another shape, or a value that the dtype cannot hold. The message begins with `what`.
    """
    if isinstance(leaf, jax.Array) and is_key(leaf):
        data = jax.random.key_data(leaf)
        if (np.shape(value), np.asarray(value).dtype) == (data.shape, data.dtype):
            keys: jax.Array = jax.random.wrap_key_data(jnp.asarray(value), impl=key_impl(leaf))
            return keys
    elif np.shape(value) != leaf.shape:
        raise ValueError(
            f"{what} has the shape {list(np.shape(value))}, and the variable has "
            f"{list(leaf.shape)}. Map it to another variable, or give a converter: "
            "{'NAME': {'VARIABLE': lambda array: array.reshape(...)}}."
        )
    elif fits(value, leaf.dtype, exactly=False):
        with np.errstate(over="ignore"):
            stored: np.ndarray = np.asarray(value).astype(leaf.dtype)
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            is_same = np.isfinite(stored) == np.isfinite(value)
        else:
            is_same = stored == value
        if np.all(is_same):
            return stored
    raise ValueError(
        f"{what} is {describe_array(value)}, which does not fit {describe_array(leaf)}. Give the variable another "
        "dtype, or convert it: init_from_checkpoint(path, {'NAME': {'VARIABLE': lambda array: ...}})."
    )


def _similar(name: str, names: Collection[str]) -> list[str]:
    return difflib.get_close_matches(name, names, n=MOST_NAMES, cutoff=0.5)


def listed(names: Iterable[str], separator: str = ", ") -> str:
    """The names for a message: the first ones, and how many there are more."""
    names = list(names)
    more = len(names) - MOST_NAMES
    return separator.join(names[:MOST_NAMES]) + (f"{separator}and {more} more" if more > 0 else "")
