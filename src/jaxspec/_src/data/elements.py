"""What input_fn returns: an iterator of elements, each (features, labels), whose leaves become NumPy arrays."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax
import numpy as np

from jaxspec._src.base.arrays import is_key
from jaxspec._src.base.callables import call_by_name, describe
from jaxspec._src.base.types import InputFn, PyTree
from jaxspec._src.data.position_methods import LoaderBatches, position_methods


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
    if isinstance(source, Iterable) and not (is_batch or isinstance(source, Iterator)):
        methods = position_methods(source)
        if methods is not None:
            return LoaderBatches(source, methods)
    if not is_batch and (isinstance(source, Iterable) or hasattr(source, "__getitem__")):
        return iter(source)
    if not is_batch and np.asarray(source).dtype == object:
        raise TypeError(
            f"input_fn returned {type(source).__name__}; return an iterable of batches, or one batch (an array, a dict "
            "or a (features, labels) tuple)."
        )
    return iter([source])


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
                f"input_fn should return (features, labels) as a len 2 tuple, got a {kind.__name__} of {len(element)}. "
                "Put several features into a dict."
            )
        return element[0], element[1]
    return element, None


def are_jax_arrays(leaves: Sequence[object]) -> bool:
    """Whether all leaves are JAX arrays with rows: they stay on their devices."""
    return bool(leaves) and all(
        isinstance(x, jax.Array) and x.ndim > 0 and x.is_fully_addressable and not is_key(x) for x in leaves
    )


_PLAIN = (bool, int, float, complex, str, bytes, np.generic)


def is_plain_list(value: object) -> bool:
    """Whether `value` is one array written in Python: a list, or lists in a list, of numbers or strings."""
    return type(value) is list and bool(value) and all(isinstance(x, _PLAIN) or is_plain_list(x) for x in value)


def _depth(value: object) -> int:
    return 1 + _depth(value[0]) if type(value) is list and value else 0


def to_numpy(leaf: object, name: str, where: str) -> np.ndarray:
    """The array `[rows, ...]` that a leaf is or converts to.

    Args:
      leaf: an array of any library, or a list of numbers.
      name: its path, for messages.
      where: which batch it belongs to, for messages.

    Raises:
      TypeError: for sparse matrices, ragged lists, strings and objects.
      ValueError: for a scalar.
    """
    if hasattr(leaf, "toarray") and not hasattr(leaf, "dtype"):
        raise TypeError(f"{where}: {name} is sparse ({type(leaf).__name__}); make it dense first.")
    try:
        array = np.asarray(leaf)
    except ValueError as error:
        if type(leaf) is list:
            raise TypeError(f"{where}: {name} is a ragged list; pad its rows to one length first.") from error
        error.add_note(f"raised in making a NumPy array of {name} ({type(leaf).__name__}), {where}")
        raise
    if array.dtype.kind in "OSUMm":
        raise TypeError(
            f"{where}: {name} has dtype {array.dtype} ({type(leaf).__name__}); devices take numbers only. "
            "Map strings to integer ids, pad ragged rows and make sparse matrices dense in input_fn."
        )
    if array.ndim == 0:
        raise ValueError(
            f"{where}: {name} is a scalar ({leaf!r}); every leaf needs a leading batch axis. Put constants into params."
        )
    return array


def narrowed(array: np.ndarray, name: str, where: str) -> np.ndarray:
    """The array in the dtype that it has on the devices: 32 bits for 64, unless jax_enable_x64 is set.

    Raises:
      OverflowError: if integers do not fit.
    """
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    if dtype == array.dtype:
        return array
    if array.dtype.kind in "iu" and array.size:
        info = np.iinfo(dtype)
        if array.max() > info.max or array.min() < info.min:
            raise OverflowError(
                f"{where}: {name} is {array.dtype} and holds values that {dtype} cannot. Enable "
                "jax_enable_x64, or map the values to a smaller range."
            )
    return array.astype(dtype)
