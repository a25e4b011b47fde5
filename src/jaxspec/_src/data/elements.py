"""Calling input_fn: what it returns as an iterator of elements, and an element as (features, labels)."""

import itertools
from collections.abc import Iterable, Iterator, Mapping

import jax
import numpy as np

from jaxspec._src.base.callables import call_by_name, describe
from jaxspec._src.base.types import InputFn, PyTree


def call_input_fn(input_fn: InputFn, arguments: Mapping[str, object]) -> object:
    """Calls input_fn with those of `params`, `mode` and `config` that it names; its exception comes back as itself."""
    try:
        return call_by_name(input_fn, arguments)
    except BaseException as error:
        error.add_note(f"raised by input_fn ({describe(input_fn)})")
        raise


def elements(source: object) -> Iterator[PyTree]:
    """An iterator over the elements of what input_fn returned: an iterable of batches, or one batch.

    Raises:
      ValueError: for None.
      TypeError: for an object that is neither.
    """
    if source is None:
        raise ValueError("input_fn returned None; return an iterable of batches, or one batch.")
    if hasattr(source, "as_numpy_iterator"):
        source = source.as_numpy_iterator()
    is_batch = isinstance(source, dict | np.ndarray | jax.Array | np.generic) or type(source) is tuple
    if not is_batch and (isinstance(source, Iterable) or hasattr(source, "__getitem__")):
        return iter(source)
    if not is_batch and np.asarray(source).dtype == object:
        raise TypeError(
            f"input_fn returned {type(source).__name__}; return an iterable of batches, or one batch (an array, a dict "
            "or a (features, labels) tuple)."
        )
    return iter([source])


def is_endless(iterator: Iterator[PyTree]) -> bool:
    """Whether an iterator is known to have another element always."""
    return isinstance(iterator, itertools.cycle) or getattr(iterator, "endless", False) is True


def split_element(element: PyTree) -> tuple[PyTree, PyTree]:
    """(features, labels) of one element; labels are None if it has none.

    A plain tuple of two is a pair, and so is a list of two, which torch's DataLoader makes of a tuple. Anything else is
    features. A list of numbers, or of such lists, is one array. If it has two items that are nested equally deep, it is
    not a pair either.
    """
    kind = type(element)
    if kind is list and is_plain_list(element) and (len(element) != 2 or _depth(element[0]) == _depth(element[1])):
        return element, None
    if kind is tuple or (kind is list and element):
        if len(element) != 2:
            raise ValueError(
                f"input_fn should return (features, labels) as a len 2 tuple, got a {kind.__name__} of {len(element)}. Put "
                "several features into a dict."
            )
        return element[0], element[1]
    return element, None


_PLAIN = (bool, int, float, complex, str, bytes, np.generic)


def is_plain_list(value: object) -> bool:
    """Whether `value` is one array written in Python: a list, or lists in a list, of numbers or strings."""
    return type(value) is list and bool(value) and all(isinstance(x, _PLAIN) or is_plain_list(x) for x in value)


def _depth(value: object) -> int:
    return 1 + _depth(value[0]) if type(value) is list and value else 0
