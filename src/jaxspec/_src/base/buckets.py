"""Objects in buckets of Google Cloud Storage and S3, through the file systems of fsspec that `etils.epath` uses.

These repeat requests that fail for a short while. What fails for good is an OSError that names the path. No listing is
kept, because other processes write to the same bucket.
"""

import base64
import contextlib
import datetime
import errno
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem


class StoredFile(NamedTuple):
    """What is known of a file, local or in a bucket, without reading it."""

    size: int
    """In bytes."""
    version: str
    """It differs for a file that was written later. A store computes it from the bytes, also of a copy."""
    crc: int | None
    """The CRC32C of the bytes, where the store gives it."""
    modified: float
    """When it was written, in seconds since the epoch, by the clock of the store."""


def objects_under(directory: str, prefix: str = "") -> Mapping[str, StoredFile]:
    """The objects whose names begin with `DIRECTORY/PREFIX`, by what comes after `DIRECTORY/`; there may be none.

    Raises:
      FileNotFoundError: if there is no such bucket.
      OSError: if the bucket cannot be read.
    """
    with _errors_named(directory):
        found = _store(directory).find(directory, detail=True, prefix=prefix)
    start = len(directory.partition("://")[2]) + 1
    # Some programs write an empty object to stand for a directory. An object of the directory's name is not in it. And
    # s3fs gives the directory itself where it found nothing, if something has been written below it meanwhile.
    return {
        name[start:]: _stored(info)
        for name, info in found.items()
        if name[start:] and not name.endswith("/") and info["type"] != "directory"
    }


def find(path: str) -> StoredFile | None:
    """The object at the path; None if there is none."""
    with _errors_named(path):
        try:
            info = _store(path).info(path)
        except FileNotFoundError:
            return None
        return None if info["type"] == "directory" else _stored(info)


def read(path: str, start: int | None = None, end: int | None = None) -> bytes:
    """The bytes of an object, or those from `start` to before `end`."""
    with _errors_named(path):
        data: bytes = _store(path).cat_file(path, start=start, end=end)
        return data


def write(path: str, data: bytes) -> None:
    """Writes an object. It is there as a whole, old or new, at any moment."""
    with _errors_named(path):
        _store(path).pipe_file(path, data)


class GrowingObject:
    """An object that is written in pieces. They are kept in memory, as a store cannot append: each flush uploads all of
    them."""

    def __init__(self, path: str) -> None:
        self._path, self._data, self._uploaded = path, bytearray(), 0

    def write(self, data: bytes) -> int:
        """Appends bytes."""
        self._data += data
        return len(data)

    def tell(self) -> int:
        """The size so far."""
        return len(self._data)

    def flush(self) -> None:
        """Uploads the object, if it has grown."""
        size = len(self._data)
        if size > self._uploaded:
            write(self._path, bytes(self._data))
            self._uploaded = size

    def close(self) -> None:
        """Frees the memory. What was not flushed is lost."""
        self._data.clear()


def remove(path: str) -> None:
    """Removes an object, or all below it. FileNotFoundError if there is none."""
    with _errors_named(path):
        _store(path).rm(path, recursive=True)


def upload(local: str, directory: str) -> None:
    """Copies all files of a local directory, and of those in it."""
    with _errors_named(directory):
        _store(directory).put(f"{local}/", f"{directory}/", recursive=True)


def download(directory: str, local: str) -> None:
    """Copies all objects below a directory into a local one."""
    with _errors_named(directory):
        _store(directory).get(f"{directory}/", f"{local}/", recursive=True)


def is_refusal(message: str) -> bool:
    """Whether an error of gcsfs, or of tensorstore, says that a permission is missing; they have no class for it."""
    return "Forbidden" in message or "PERMISSION_DENIED" in message


def _store(path: str) -> "AbstractFileSystem":
    from etils.epath import backend

    store = backend.fsspec_backend.fs(path)
    store.dircache.use_listings_cache = False
    return store


def _stored(info: Mapping[str, Any]) -> StoredFile:
    crc = info.get("crc32c")
    modified: datetime.datetime = info.get("mtime") or info["LastModified"]
    return StoredFile(
        info["size"],
        info.get("ETag") or info["etag"],
        int.from_bytes(base64.b64decode(crc), "big") if crc else None,
        modified.timestamp(),
    )


@contextlib.contextmanager
def _errors_named(path: str) -> Iterator[None]:
    """Makes every error an OSError that names the path: stores raise many other exceptions."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, "there is no such bucket, or no such object", path) from error
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        number = errno.EACCES if isinstance(error, PermissionError) or is_refusal(said) else errno.EIO
        raise OSError(number, f"{type(error).__name__}: {said}", path) from error
