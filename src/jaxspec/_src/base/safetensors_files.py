"""Files of safetensors: arrays by name, and nothing else."""

import contextlib
import tempfile
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec._src.base.files import read_file
from jaxspec._src.base.paths import in_bucket
from jaxspec._src.base.types import Array, DType

if TYPE_CHECKING:
    from safetensors import safe_open

_INTEGERS = [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
_DTYPES = {"bool", *_INTEGERS, "float16", "bfloat16", "float32", "float64", "complex64"}
"""What the format holds and NumPy reads back."""


def check_dtypes(arrays: Mapping[str, Array]) -> None:
    """Raises a ValueError that names an array of a dtype that such a file cannot hold."""
    for name, array in arrays.items():
        if array.dtype.name not in _DTYPES:
            raise ValueError(
                f"{name} has dtype {array.dtype.name}, which a file of safetensors cannot hold. Expected one of "
                f"{sorted(_DTYPES)}: keep the variable as one of these, and convert it in model_fn."
            )


def write_arrays(path: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays, of dtypes that were checked, to a file on the disk."""
    from safetensors.numpy import save_file

    save_file(_in_order(arrays), path)


def encode_arrays(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The bytes of a file with these arrays, of dtypes that were checked."""
    from safetensors.numpy import save

    return save(_in_order(arrays))


def _in_order(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays in C order: the library writes the memory as it is."""
    return {name: np.asarray(array, order="C") for name, array in arrays.items()}


def read_arrays(path: str, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Arrays of a file, on the disk or in a bucket.

    Args:
      names: None: of all arrays.

    Raises:
      ValueError: if it is no such file, or is not whole.
    """
    with _opened(path) as file:
        # Not numpy.load_file: it knows no bfloat16.
        return {name: file.get_tensor(name) for name in (file.keys() if names is None else names)}


def array_shapes(path: str) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes and dtypes of the arrays of a file. Errors as for `read_arrays`."""
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in list(file.keys())}
        return {name: jax.ShapeDtypeStruct(x.get_shape(), _dtype(x.get_dtype())) for name, x in slices.items()}


def _dtype(name: str) -> DType:
    """The dtype that safetensors calls by a name such as BF16."""
    kind = name.rstrip("0123456789")
    return jnp.dtype(_KINDS[kind] + name.removeprefix(kind))


_KINDS = {"F": "float", "BF": "bfloat", "I": "int", "U": "uint", "C": "complex", "BOOL": "bool"}


@contextlib.contextmanager
def _opened(path: str) -> Iterator["safe_open"]:
    from safetensors import SafetensorError, safe_open

    with _on_disk(path) as local:
        try:
            with safe_open(local, framework="np") as file:
                yield file
        except SafetensorError as error:
            raise ValueError(f"{path} is no whole file of safetensors: {error}.") from error


@contextlib.contextmanager
def _on_disk(path: str) -> Iterator[str]:
    """Yields the path of a file, or of a copy if it is in a bucket."""
    if not in_bucket(path):
        yield path
        return
    with tempfile.NamedTemporaryFile() as copy:
        copy.write(read_file(path))
        copy.flush()
        yield copy.name
