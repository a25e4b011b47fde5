"""The manifest of a checkpoint: size and checksum of each of its files. By it a damaged checkpoint is noticed."""

import functools
import json
import os

import crc32c

from jaxspec._src.base.errors import DamagedCheckpointError

_MANIFEST = "manifest.json"
KEPT = "kept"
"""The file that marks a checkpoint as one to keep for ever. It is written later, so the manifest does not list it."""
_CHUNK_BYTES = 1 << 20


class MissingCheckpointError(FileNotFoundError, ValueError):
    """There is no such checkpoint, or it was removed while it was read."""


def write_manifest(directory: str, step: int) -> None:
    """Writes the manifest of a directory in which all other files are complete."""
    files = {name: [size, _crc(os.path.join(directory, name))] for name, (size, _) in _files(directory).items()}
    content = {"step": step, "files": files}
    with open(os.path.join(directory, _MANIFEST), "w", encoding="utf-8") as file:
        json.dump({"crc": _crc_of_json(content), **content}, file)
        file.flush()
        os.fsync(file.fileno())


def verify(path: str, step: int) -> None:
    """Raises an error unless the checkpoint at `path` is undamaged and holds the step that its name says.

    Every byte is read, unless an earlier call of this process has read files of the same sizes and times.

    Raises:
      FileNotFoundError: if there is no such directory, or it is removed meanwhile.
      DamagedCheckpointError: naming the file that is damaged.
    """
    if os.path.isfile(path):
        raise DamagedCheckpointError(path, "it is a file, not a directory")
    try:
        found = _files(path)
        with open(os.path.join(path, _MANIFEST), "rb") as file:
            manifest = file.read()
    except OSError as error:
        raise_if_removed(path, error)
        raise DamagedCheckpointError(
            path,
            f"its {_MANIFEST} cannot be read ({error.strerror}); it was copied in part, or not written by this library",
        ) from error
    try:
        content = json.loads(manifest)
        crc, stored_step, files = content.pop("crc"), content["step"], content["files"]
        is_whole = crc == _crc_of_json(content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        is_whole = False
    if not is_whole:
        raise DamagedCheckpointError(path, f"its {_MANIFEST} is not what was written")
    if stored_step != step:
        raise DamagedCheckpointError(path, f"it holds step {stored_step}, and its name says {step}")
    for name in sorted({*files, *found}):
        if name not in found:
            raise DamagedCheckpointError(path, f"the file {name} is missing")
        if name not in files:
            raise DamagedCheckpointError(path, f"the file {name} does not belong to it")
        if found[name][0] != files[name][0]:
            raise DamagedCheckpointError(
                path, f"the file {name} has {found[name][0]} bytes, and {files[name][0]} were written"
            )
    name = _file_with_other_bytes(path, manifest, tuple(found.items()))
    if name is not None:
        raise DamagedCheckpointError(path, f"the file {name} has other bytes than were written (its checksum differs)")


@functools.lru_cache(maxsize=16)  # `found` makes other sizes or times another call
def _file_with_other_bytes(path: str, manifest: bytes, found: tuple[tuple[str, tuple[int, int]], ...]) -> str | None:
    """The first file whose checksum differs."""
    files: dict[str, tuple[int, int]] = json.loads(manifest)["files"]
    for name, (_, crc) in files.items():
        try:
            is_right = _crc(os.path.join(path, name)) == crc
        except OSError as error:
            raise_if_removed(path, error)
            raise DamagedCheckpointError(path, f"the file {name} cannot be read ({error.strerror})") from error
        if not is_right:
            return name
    return None


def raise_if_removed(path: str, error: Exception) -> None:
    """Raises FileNotFoundError if the directory of the checkpoint no longer exists."""
    if not os.path.isdir(path):
        raise MissingCheckpointError(
            f"the checkpoint {path} was removed while it was read. A trainer that keeps few checkpoints may do so "
            "(RunConfig.keep_checkpoint_max); take a newer one."
        ) from error


def _files(directory: str) -> dict[str, tuple[int, int]]:
    """(size, time of the last change in ns) by relative path, of all files that a manifest lists."""
    found = {}
    for parent, _, names in os.walk(directory, onerror=_raise):
        for name in names:
            file = os.path.join(parent, name)
            relative = os.path.relpath(file, directory).replace(os.sep, "/")
            if relative not in (_MANIFEST, KEPT):
                status = os.stat(file)
                found[relative] = (status.st_size, status.st_mtime_ns)
    return found


def _raise(error: OSError) -> None:
    raise error


def _crc(file: str) -> int:
    crc = 0
    with open(file, "rb") as opened:
        while chunk := opened.read(_CHUNK_BYTES):
            crc = crc32c.crc32c(chunk, crc)
    return crc


def _crc_of_json(content: object) -> int:
    return crc32c.crc32c(json.dumps(content, sort_keys=True).encode())
