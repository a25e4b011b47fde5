"""A TensorFlow checkpoint, open for reading: an `.index` of names and places, and the data files that it is about."""

import contextlib
import math
import os
from collections.abc import Iterator

import numpy as np

from jaxspec._src.base.errors import DamagedCheckpointError
from jaxspec._src.base.files import find_file, read_file, read_range
from jaxspec._src.checkpoint.names_in_messages import similar_names
from jaxspec._src.checkpoint.tensorflow.damage import DamageError
from jaxspec._src.checkpoint.tensorflow.dtypes import is_known, numpy_dtype
from jaxspec._src.checkpoint.tensorflow.entries import Entry, Extent, read_entry, read_header
from jaxspec._src.checkpoint.tensorflow.find import find_checkpoint
from jaxspec._src.checkpoint.tensorflow.slice_keys import SLICE_PREFIX, slice_key
from jaxspec._src.checkpoint.tensorflow.table import read_table
from jaxspec._src.checkpoint.tensorflow.tensors import check_size, decode

_MOST_NAMES = 100
"""As many an error lists."""


def list_variables(path: str | os.PathLike[str]) -> list[tuple[str, list[int]]]:
    """(name, shape) of each variable, sorted by name. Only the index is read. Errors as for `load_checkpoint`."""
    return sorted(load_checkpoint(path).get_variable_to_shape_map().items())


def load_variable(path: str | os.PathLike[str], name: str) -> np.ndarray:
    """One variable, as `CheckpointReader.read` gives it. No other variable is read."""
    return load_checkpoint(path).read(name)


def load_checkpoint(path: str | os.PathLike[str]) -> "CheckpointReader":
    """Opens a checkpoint of TensorFlow 1 or 2, without TensorFlow. Its index is read and checked, and no data file.

    Args:
      path: a prefix such as `model.ckpt-123`, or a directory whose file `checkpoint` names the latest. It may be in a
        bucket.

    Raises:
      ValueError: if there is no such checkpoint, or it is in a format that is not known.
      DamagedCheckpointError: if its index is damaged.
    """
    prefix = find_checkpoint(path)
    with _named(f"{prefix}.index"):
        table = read_table(read_file(f"{prefix}.index"))
        if b"" not in table:
            raise DamageError("it has no header")
        shards = read_header(table.pop(b""), f"{prefix}.index")
        entries = {key: read_entry(value) for key, value in table.items()}
        try:
            return CheckpointReader(prefix, shards, entries)
        except UnicodeDecodeError as error:
            raise DamageError("a name in it is not in UTF-8") from error


class CheckpointReader:
    """A TensorFlow checkpoint. Each `read` reads the bytes of one variable, and checks them.

    It has the methods of TensorFlow's `tf.train.load_checkpoint(path)`, too.
    """

    def __init__(self, prefix: str, shards: int, entries: dict[bytes, Entry]) -> None:
        self.path = prefix
        """The prefix of its files."""
        self._shards, self._entries = shards, entries
        self._names = {key.decode(): entry for key, entry in entries.items() if not key.startswith(SLICE_PREFIX)}

    def names(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """(shape, dtype) of each variable, by name. The dtype of strings is that of objects."""
        return {name: (entry.shape, numpy_dtype(entry.dtype)) for name, entry in self._names.items()}

    def read(self, name: str) -> np.ndarray:
        """A variable, as a new array. Strings are objects of the type `bytes`.

        Raises:
          ValueError: if there is no such name; it lists those that there are. Or if NumPy has nothing for its dtype.
          DamagedCheckpointError: if a data file is missing or too short, or holds other bytes than were written.
        """
        if name not in self._names:
            listed = f"the names are {sorted(self._names)}"
            if len(self._names) > _MOST_NAMES:
                similar = similar_names(str(name), self._names)
                listed = f"of its {len(self._names)} names these are similar: {similar}"
            raise ValueError(f"the TensorFlow checkpoint {self.path} has no variable {name!r}; {listed}.")
        entry = self._names[name]
        if not is_known(entry.dtype):
            raise ValueError(
                f"{name!r} of the TensorFlow checkpoint {self.path} is a resource or a variant of TensorFlow (dtype "
                f"{entry.dtype}), for which NumPy has no form."
            )
        with _named(f"{self.path}.index"):
            return self._assembled(name, entry) if entry.slices else self._tensor(name, entry)

    def has_tensor(self, name: str) -> bool:
        """Whether there is a variable of this name."""
        return name in self._names

    def get_tensor(self, name: str) -> np.ndarray:
        """The same as `read`."""
        return self.read(name)

    def get_variable_to_shape_map(self) -> dict[str, list[int]]:
        """The shapes of the variables, by name."""
        return {name: list(entry.shape) for name, entry in self._names.items()}

    def get_variable_to_dtype_map(self) -> dict[str, np.dtype]:
        """The NumPy dtypes of the variables, by name."""
        return {name: numpy_dtype(entry.dtype) for name, entry in self._names.items()}

    def _tensor(self, name: str, entry: Entry) -> np.ndarray:
        """A tensor that is in one piece."""
        path, size = self._data_file(name, entry)
        with _named(path, f"{name!r}: "):
            check_size(entry)
            end = entry.offset + entry.size
            if end > size:
                raise DamageError(f"it ends at byte {end}, and the file has {size} bytes")
            return decode(read_range(path, entry.offset, entry.size), entry)

    def _data_file(self, name: str, entry: Entry) -> tuple[str, int]:
        """(path, size in bytes) of the file that a tensor is in."""
        if entry.shard >= self._shards:
            raise DamageError(f"it says that {name!r} is in data file {entry.shard} of {self._shards}")
        path = f"{self.path}.data-{entry.shard:05d}-of-{self._shards:05d}"
        file = find_file(path)
        if file is None:
            raise DamagedCheckpointError(self.path, f"the file {path} is missing")
        return path, file.size

    def _assembled(self, name: str, whole: Entry) -> np.ndarray:
        """A partitioned variable, put together from its slices."""
        slices = [self._slice(name, whole, extents) for extents in whole.slices]
        elements, size = sum(math.prod(entry.shape) for _, entry in slices), sum(entry.size for _, entry in slices)
        files = dict(self._data_file(name, entry) for _, entry in slices)
        # Slices that lie in the same bytes would need more memory than there are bytes.
        if elements != math.prod(whole.shape) or size > sum(files.values()):
            raise DamageError(f"the slices of {name!r} are not as large as the whole")
        array, is_set = np.empty(whole.shape, numpy_dtype(whole.dtype)), np.zeros(whole.shape, np.bool_)
        for place, entry in slices:
            array[place], is_set[place] = self._tensor(name, entry), True
        if not is_set.all():
            raise DamageError(f"the slices of {name!r} overlap")
        return array

    def _slice(self, name: str, whole: Entry, extents: tuple[Extent, ...]) -> tuple[tuple[slice, ...], Entry]:
        """(its place in the whole, its own entry)."""
        entry = self._entries.get(slice_key(name.encode(), extents))
        if entry is None or len(extents) != len(whole.shape):
            raise DamageError(f"a slice of {name!r} is missing")
        place = tuple(
            slice(start, size if length is None else start + length)
            for (start, length), size in zip(extents, whole.shape, strict=True)
        )
        shape = tuple(part.stop - part.start for part in place)
        is_inside = all(part.stop <= size for part, size in zip(place, whole.shape, strict=True))
        if not is_inside or entry.shape != shape or entry.dtype != whole.dtype or entry.slices:
            raise DamageError(f"a slice of {name!r} does not fit the whole")
        check_size(entry)
        return place, entry


@contextlib.contextmanager
def _named(file: str, what: str = "") -> Iterator[None]:
    """Says which file is damaged."""
    try:
        yield
    except DamageError as error:
        raise DamagedCheckpointError(file, f"{what}{error}") from error
