"""What is done with files, on the disk and in a bucket.

A bucket holds objects by their whole names. It has no directories: one exists as long as the name of some object begins
with it. Nothing can be renamed there.
"""

import contextlib
import errno
import io
import os
import shutil
import uuid
from collections.abc import Mapping
from typing import BinaryIO

from jaxspec._src.base import buckets
from jaxspec._src.base.buckets import StoredFile
from jaxspec._src.base.paths import in_bucket, join


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


def read_range(path: str, start: int, size: int) -> bytearray:
    """`size` bytes of a file from `start` on, or fewer where the file ends. The rest of the file is not read."""
    if in_bucket(path):
        return bytearray(buckets.read(path, start, start + size))
    with open(path, "rb") as file:
        file.seek(start)
        data = bytearray(size)
        del data[file.readinto(data) :]
        return data


def open_file(path: str) -> BinaryIO:
    """A file, open for reading. An object in a bucket is read as a whole before that."""
    return io.BytesIO(buckets.read(path)) if in_bucket(path) else open(path, "rb")


def open_to_write(path: str) -> BinaryIO | buckets.GrowingObject:
    """A new file, open for writing. In a bucket it appears, or grows, when it is flushed or closed."""
    return buckets.GrowingObject(path) if in_bucket(path) else open(path, "wb")


def open_to_append(path: str) -> BinaryIO:
    """A local file, open for writing at its end. FileNotFoundError if there is none."""
    return open(path, "ab", opener=lambda path, flags: os.open(path, flags & ~os.O_CREAT))


def write_file(path: str, data: bytes) -> None:
    """Writes a file, and makes its directory. The file is whole, old or new, at any moment."""
    if in_bucket(path):
        buckets.write(path, data)
        return
    make_directory(os.path.dirname(path))
    new = f"{path}.{uuid.uuid4().hex[:8]}.tmp"  # another process may be writing the same file
    try:
        with open(new, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(new)
        raise


def copy_file(source: str, path: str) -> None:
    """Copies a file, which may be in a bucket, to one on the disk, and makes its directory."""
    make_directory(os.path.dirname(path))
    with open_file(source) as file, open(path, "wb") as copy:
        shutil.copyfileobj(file, copy)


def make_new_directory(path: str) -> None:
    """Makes a directory on the disk. FileExistsError if it is there."""
    os.mkdir(path)


def publish(staged: str, directory: str, last: str) -> None:
    """Moves a directory of the disk to its place, where it appears as a whole.

    In a bucket, where nothing can be moved, its files are copied, the one with the name `last` after all others.

    Raises:
      FileExistsError: if there is something at the place.
    """
    if in_bucket(directory):
        if is_directory(directory):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), directory)
        final = read_file(join(staged, last))
        os.remove(join(staged, last))
        buckets.upload(staged, directory)
        buckets.write(join(directory, last), final)
        return
    for name in files_under(staged):
        with open(join(staged, name), "rb") as file:
            os.fsync(file.fileno())
    try:
        os.rename(staged, directory)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), directory) from error
        raise


def remove(path: str) -> None:
    """Removes a file, or a directory with all that is in it. FileNotFoundError if there is none."""
    if in_bucket(path):
        buckets.remove(path)
    elif os.path.isdir(path):
        shutil.rmtree(path)
    else:
        os.remove(path)


def existing_part(path: str) -> str:
    """The longest part of a local path at which there is something: a directory, or a file."""
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    return path


def check_writable(directory: str) -> None:
    """Raises an OSError if a directory cannot be written to, or cannot be made. In a bucket an object is written, and
    removed again."""
    if in_bucket(directory):
        probe = join(directory, f"writable-{uuid.uuid4().hex[:8]}")
        buckets.write(probe, b"")
        buckets.remove(probe)
        return
    place = existing_part(directory)
    is_dir, effective = os.path.isdir(place), os.access in os.supports_effective_ids
    if not (is_dir and os.access(place, os.W_OK | os.X_OK, effective_ids=effective)):
        number = errno.EACCES if is_dir else errno.ENOTDIR
        raise OSError(number, os.strerror(number), place)
