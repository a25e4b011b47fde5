"""One leaf of a batch as a NumPy array of a dtype that devices take: what is converted, narrowed and refused."""

import jax
import numpy as np


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
