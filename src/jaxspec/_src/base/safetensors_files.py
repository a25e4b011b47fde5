"""Files of safetensors: arrays by name, and nothing else."""

import contextlib
import tempfile
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec._src.base.files import is_directory, read_file
from jaxspec._src.base.paths import in_bucket
from jaxspec._src.base.types import Array

if TYPE_CHECKING:
    from safetensors import safe_open

_DTYPES = {
    "BOOL": "bool",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    **{f"{kind[0].upper()}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}
"""What the format holds and NumPy reads back: by the name in a file, that of NumPy."""


def check_dtypes(arrays: Mapping[str, Array]) -> None:
    """Raises a ValueError that names an array of a dtype that such a file cannot hold."""
    for name, array in arrays.items():
        if array.dtype.name not in _DTYPES.values():
            raise ValueError(
                f"{name} has dtype {array.dtype.name}, which a file of safetensors cannot hold. Expected one of "
                f"{sorted(_DTYPES.values())}: keep the variable as one of these, and convert it in model_fn."
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
      FileNotFoundError: if there is none.
      IsADirectoryError: if it is a directory.
      ValueError: if it is no such file, or is not whole; for an array of a dtype that NumPy lacks.
    """
    with _opened(path) as file:
        names = list(file.keys()) if names is None else names
        for name in names:
            dtype = file.get_slice(name).get_dtype()
            if dtype not in _DTYPES:
                raise ValueError(
                    f"{path}: {name} has the dtype {dtype}; expected one of {sorted(_DTYPES)}. Convert it in the "
                    "program that wrote the file."
                )
        # Not numpy.load_file: it knows no bfloat16.
        return {name: file.get_tensor(name) for name in names}


def array_shapes(path: str) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes and dtypes of the arrays of a file; the dtype of objects in place of those that NumPy lacks.

    Errors as for `read_arrays`.
    """
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in list(file.keys())}
        return {
            name: jax.ShapeDtypeStruct(x.get_shape(), jnp.dtype(_DTYPES.get(x.get_dtype(), "object")))
            for name, x in slices.items()
        }


@contextlib.contextmanager
def _opened(path: str) -> Iterator["safe_open"]:
    from safetensors import SafetensorError, safe_open

    if not in_bucket(path) and is_directory(path):
        raise IsADirectoryError(f"{path} is a directory; expected the path of a file of safetensors.")
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
