"""The manifest of a checkpoint: the size and checksum of each of its files, by which damage is noticed."""

import functools
import json
import os
from typing import Any

import crc32c

from jaxspec._src.base.errors import DamagedCheckpointError

NAME = "manifest.json"
_CHUNK = 1 << 20


class MissingCheckpointError(FileNotFoundError, ValueError):
    """There is no such checkpoint, or it was removed while it was read."""


def write(directory: str, step: int) -> None:
    """Writes the manifest of a directory whose other files are all there."""
    files = {name: [size, _crc(os.path.join(directory, name))] for name, (size, _) in _files(directory).items()}
    content = {"step": step, "files": files}
    with open(os.path.join(directory, NAME), "w", encoding="utf-8") as file:
        json.dump({"crc": _crc_of_json(content), **content}, file)
        file.flush()
        os.fsync(file.fileno())


def verify(path: str, step: int) -> None:
    """Raises unless the checkpoint at `path` is whole, and of the step that its name says.

    Every byte is read, unless sizes and times are those of an earlier call of this process.

    Raises:
      FileNotFoundError: if there is no such directory, or it goes meanwhile.
      DamagedCheckpointError: naming the file.
    """
    if os.path.isfile(path):
        raise DamagedCheckpointError(path, "it is a file, not a directory")
    try:
        found = _files(path)
        with open(os.path.join(path, NAME), "rb") as file:
            written = file.read()
    except OSError as error:
        raise_if_gone(path, error)
        raise DamagedCheckpointError(
            path, f"its {NAME} cannot be read ({error.strerror}); it was copied in part, or not written by this library"
        ) from error
    try:
        content = json.loads(written)
        crc, stored_step, files = content.pop("crc"), content["step"], content["files"]
        is_whole = crc == _crc_of_json(content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        is_whole = False
    if not is_whole:
        raise DamagedCheckpointError(path, f"its {NAME} is not what was written")
    if stored_step != step:
        raise DamagedCheckpointError(path, f"it holds step {stored_step}, and its name says {step}")
    for name in sorted({*files, *found}):
        if name not in found:
            raise DamagedCheckpointError(path, f"the file {name} is missing")
        if name not in files:
            raise DamagedCheckpointError(path, f"the file {name} does not belong to it")
        if found[name][0] != files[name][0]:
            raise DamagedCheckpointError(
                path, f"the file {name} has {found[name][0]} bytes, of {files[name][0]} written"
            )
    _verify_bytes(path, written, tuple(found.items()))


@functools.lru_cache(maxsize=16)  # an exception is not kept
def _verify_bytes(path: str, written: bytes, found: Any) -> None:
    for name, (_, crc) in json.loads(written)["files"].items():
        try:
            is_right = _crc(os.path.join(path, name)) == crc
        except OSError as error:
            raise_if_gone(path, error)
            raise DamagedCheckpointError(path, f"the file {name} cannot be read ({error.strerror})") from error
        if not is_right:
            raise DamagedCheckpointError(
                path, f"the file {name} has other bytes than were written (its checksum differs)"
            )


def raise_if_gone(path: str, error: Exception) -> None:
    """Raises FileNotFoundError if the directory of the checkpoint is not there."""
    if not os.path.isdir(path):
        raise MissingCheckpointError(
            f"the checkpoint {path} was removed while it was read. A trainer that keeps few checkpoints may do so "
            "(RunConfig.keep_checkpoint_max); take a newer one."
        ) from error


def _files(directory: str) -> dict[str, tuple[int, int]]:
    """(size, time of the last change in ns) of all files below a directory but the manifest and markers, by relative path."""
    found = {}
    for parent, _, names in os.walk(directory, onerror=_raise):
        for name in names:
            file = os.path.join(parent, name)
            relative = os.path.relpath(file, directory).replace(os.sep, "/")
            if relative not in (NAME, KEPT):
                status = os.stat(file)
                found[relative] = (status.st_size, status.st_mtime_ns)
    return found


KEPT = "kept"
"""The file that marks a checkpoint as one to keep for ever; it comes after the manifest."""


def _raise(error: OSError) -> None:
    raise error


def _crc(file: str) -> int:
    crc = 0
    with open(file, "rb") as opened:
        while chunk := opened.read(_CHUNK):
            crc = crc32c.crc32c(chunk, crc)
    return crc


def _crc_of_json(content: Any) -> int:
    crc: int = crc32c.crc32c(json.dumps(content, sort_keys=True).encode())
    return crc
