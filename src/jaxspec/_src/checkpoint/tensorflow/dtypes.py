"""The dtypes of TensorFlow, as those of NumPy."""

import jax.numpy as jnp
import numpy as np

STRING = 7
_DTYPES = {
    number: np.dtype(dtype)
    for number, dtype in {
        1: np.float32,
        2: np.float64,
        3: np.int32,
        4: np.uint8,
        5: np.int16,
        6: np.int8,
        STRING: np.object_,
        8: np.complex64,
        9: np.int64,
        10: np.bool_,
        # What is quantised comes without its scale, which the checkpoint does not have.
        11: np.int8,
        12: np.uint8,
        13: np.int32,
        14: jnp.bfloat16,
        15: np.int16,
        16: np.uint16,
        17: np.uint16,
        18: np.complex128,
        19: np.float16,
        22: np.uint32,
        23: np.uint64,
        24: jnp.float8_e5m2,
        25: jnp.float8_e4m3fn,
        29: jnp.int4,
        30: jnp.uint4,
    }.items()
}
"""By the number that the format has for it."""


def numpy_dtype(number: int) -> np.dtype:
    """The dtype of NumPy; that of objects for strings, and for what NumPy has no form of."""
    dtype: np.dtype = _DTYPES.get(number, np.dtype(np.object_))
    return dtype


def is_known(number: int) -> bool:
    """Whether a tensor of this dtype can be read."""
    return number in _DTYPES
