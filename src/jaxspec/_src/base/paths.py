"""Paths as the user gives them, local or in a bucket, and what is done with the files there.

A path in a bucket begins with `gs://` or `s3://`; any other is an absolute local path. A bucket holds objects by their
whole names. It has no directories: one exists as long as the name of some object begins with it. Nothing can be
renamed there.
"""

import errno
import importlib.util
import io
import os
import posixpath
import re
import shutil
import uuid
from collections.abc import Mapping
from typing import BinaryIO

from jaxspec._src.base import buckets
from jaxspec._src.base.buckets import StoredFile

_PACKAGES = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}
"""By scheme, the package that fsspec needs, and the extra of jaxspec that installs it."""
_PATTERN_CHARACTERS = "[]?*{}\\#"


def absolute_path(directory: str | os.PathLike[str]) -> str:
    """The directory as an absolute local path, which a later `os.chdir` does not change; or its address in a bucket.

    Raises:
      ValueError: for an address that is not in a bucket of Google Cloud Storage or S3.
      ImportError: if a package is missing that reads and writes such buckets.
    """
    path = os.fspath(directory)
    if (match := re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", path, re.DOTALL)) is None:
        lost = re.match(rf"({'|'.join(_PACKAGES)}):/+", path)
        if lost is not None:
            raise ValueError(
                f"{path!r} is a local path: pathlib makes one slash of two. Write the string "
                f"'{lost[1]}://{path[lost.end() :]}', or use etils.epath.Path."
            )
        return os.path.abspath(path)
    scheme, address = match[1], match[2]
    if scheme not in _PACKAGES:
        known = ", ".join(f"{known}://bucket/directory" for known in _PACKAGES)
        raise ValueError(
            f"{path!r} is a remote address that cannot be read or written. Expected a local directory, or one of "
            f"{known}."
        )
    address = posixpath.normpath(address) if address else ""
    if not re.match(r"[^/.]", address) or set(_PATTERN_CHARACTERS) & set(address):
        raise ValueError(
            f"{path!r} is not a directory in a bucket. Expected {scheme}://bucket/directory, without any of "
            f"{' '.join(_PATTERN_CHARACTERS)}."
        )
    package, extra = _PACKAGES[scheme]
    if importlib.util.find_spec(package) is None:
        raise ImportError(
            f'{path} needs the package {package}, which is not installed. Run: pip install "jaxspec[{extra}]"'
        )
    return f"{scheme}://{address}"


def in_bucket(path: str) -> bool:
    """Whether the path is that of an object, or a directory, in a bucket."""
    return "://" in path


def join(directory: str, *names: str) -> str:
    """The path of what has these names, one in the other, in a directory."""
    return posixpath.join(directory, *names) if in_bucket(directory) else os.path.join(directory, *names)


def split(path: str) -> tuple[str, str]:
    """(the directory, the name in it) of an absolute path."""
    return posixpath.split(path) if in_bucket(path) else os.path.split(path)


def names_in(directory: str) -> list[str]:
    """The names of what is directly in a directory; none if there is no such directory."""
    if in_bucket(directory):
        return sorted({name.split("/")[0] for name in buckets.objects_under(directory)})
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []


def files_in(directory: str) -> list[str]:
    """The names of the files directly in a directory; none if there is no such directory."""
    if in_bucket(directory):
        return [name for name in buckets.objects_under(directory) if "/" not in name]
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry in entries if entry.is_file()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def make_directory(path: str) -> None:
    """Makes a directory, and those above it, where there is none. A bucket has none."""
    if not in_bucket(path):
        os.makedirs(path, exist_ok=True)


def is_directory(path: str) -> bool:
    """Whether there is a directory at the path."""
    return bool(buckets.objects_under(path)) if in_bucket(path) else os.path.isdir(path)


def files_under(directory: str, prefix: str = "") -> Mapping[str, StoredFile]:
    """All files of a directory and of those in it, by relative names with slashes, if these begin with `prefix`.

    Raises:
      OSError: if it cannot be read, or there is no such local directory or no such bucket.
    """
    if in_bucket(directory):
        return buckets.objects_under(directory, prefix)
    found = {}
    for parent, _, names in os.walk(directory, onerror=_raise):
        for name in names:
            file = os.path.join(parent, name)
            relative = os.path.relpath(file, directory).replace(os.sep, "/")
            if relative.startswith(prefix):
                found[relative] = _stored(os.stat(file))
    return found


def _raise(error: OSError) -> None:
    raise error


def find_file(path: str) -> StoredFile | None:
    """The file at the path; None if there is none."""
    if in_bucket(path):
        return buckets.find(path)
    try:
        return _stored(os.stat(path)) if os.path.isfile(path) else None
    except FileNotFoundError:
        return None


def _stored(status: os.stat_result) -> StoredFile:
    return StoredFile(status.st_size, f"{status.st_ino}-{status.st_mtime_ns}", None, status.st_mtime)


def read_file(path: str) -> bytes:
    """The bytes of a file."""
    with open_file(path) as file:
        return file.read()


def open_file(path: str) -> BinaryIO:
    """A file, open for reading. An object in a bucket is read as a whole before that."""
    return io.BytesIO(buckets.read(path)) if in_bucket(path) else open(path, "rb")


def open_to_write(path: str) -> BinaryIO | buckets.GrowingObject:
    """A new file, open for writing. In a bucket it appears, or grows, when it is flushed or closed."""
    return buckets.GrowingObject(path) if in_bucket(path) else open(path, "wb")


def write_file(path: str, data: bytes) -> None:
    """Writes a file, and makes its directory. The file is whole, old or new, at any moment."""
    if in_bucket(path):
        buckets.write(path, data)
        return
    make_directory(os.path.dirname(path))
    with open(f"{path}.tmp", "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.tmp", path)


def remove(path: str) -> None:
    """Removes a file, or a directory with all that is in it. FileNotFoundError if there is none."""
    if in_bucket(path):
        buckets.remove(path)
    elif os.path.isdir(path):
        shutil.rmtree(path)
    else:
        os.remove(path)


def check_writable(directory: str) -> None:
    """Raises an OSError if a directory cannot be written to, or cannot be made. In a bucket an object is written, and
    removed again."""
    if in_bucket(directory):
        probe = join(directory, f"writable-{uuid.uuid4().hex[:8]}")
        buckets.write(probe, b"")
        buckets.remove(probe)
        return
    place = directory
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    is_dir, effective = os.path.isdir(place), os.access in os.supports_effective_ids
    if not (is_dir and os.access(place, os.W_OK | os.X_OK, effective_ids=effective)):
        number = errno.EACCES if is_dir else errno.ENOTDIR
        raise OSError(number, os.strerror(number), place)
