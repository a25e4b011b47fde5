"""The manifest of a checkpoint: size and checksum of each of its files. By it a damaged checkpoint is noticed."""

import functools
import json
from collections.abc import Mapping

import crc32c

from jaxspec._src.base.buckets import StoredFile
from jaxspec._src.base.errors import DamagedCheckpointError
from jaxspec._src.base.files import files_under, find_file, is_directory, open_file, read_file, write_file
from jaxspec._src.base.paths import in_bucket, join

MANIFEST = "manifest.json"
"""It is written last. In a bucket, what has no manifest is no checkpoint: it is being written, or removed."""
KEPT = "kept"
"""The file that marks a checkpoint as one to keep for ever. It is written later, so the manifest does not list it."""
_CHUNK_BYTES = 1 << 20


class MissingCheckpointError(FileNotFoundError, ValueError):
    """There is no such checkpoint, or it was removed while it was read."""


def write_manifest(directory: str, step: int, copy: str | None = None) -> None:
    """Writes the manifest of a directory in which all other files are complete.

    Args:
      copy: a local directory with the same files, to compute checksums from where the store gives none.
    """
    files = {
        # By the version a store without checksums shows that a file is the one that was written.
        name: [file.size, _crc(join(copy or directory, name), file), *([] if copy is None else [file.version])]
        for name, file in _files(directory).items()
    }
    content = {"step": step, "files": files}
    write_file(join(directory, MANIFEST), json.dumps({"crc": _crc_of_json(content), **content}).encode())


def exists(path: str) -> bool:
    """Whether there is a checkpoint at the path. It may be damaged."""
    return find_file(join(path, MANIFEST)) is not None if in_bucket(path) else is_directory(path)


def version(path: str) -> str | None:
    """It differs for another checkpoint that has taken the place of this one; None if this one cannot be read."""
    manifest = find_file(join(path, MANIFEST))
    return None if manifest is None else manifest.version


def verify(path: str, step: int) -> None:
    """Raises an error unless the checkpoint at `path` is undamaged and holds the step that its name says.

    Every byte is read, unless an earlier call of this process has read files of the same sizes and times, or the store
    computes a checksum of what it holds.

    Raises:
      FileNotFoundError: if there is no such directory, or it is removed meanwhile.
      DamagedCheckpointError: naming the file that is damaged.
    """
    if not in_bucket(path) and find_file(path):
        raise DamagedCheckpointError(path, "it is a file, not a directory")
    try:
        found = _files(path)
        manifest = read_file(join(path, MANIFEST))
    except OSError as error:
        raise_if_removed(path, error)
        raise DamagedCheckpointError(
            path,
            f"its {MANIFEST} cannot be read ({error.strerror}); it was copied in part, or not written by this library",
        ) from error
    try:
        content = json.loads(manifest)
        crc, stored_step, files = content.pop("crc"), content["step"], content["files"]
        is_whole = crc == _crc_of_json(content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        is_whole = False
    if not is_whole:
        raise DamagedCheckpointError(path, f"its {MANIFEST} is not what was written")
    if stored_step != step:
        raise DamagedCheckpointError(path, f"it holds step {stored_step}, and its name says {step}")
    for name in sorted({*files, *found}):
        if name not in found:
            raise DamagedCheckpointError(path, f"the file {name} is missing")
        if name not in files:
            raise DamagedCheckpointError(path, f"the file {name} does not belong to it")
        if found[name].size != files[name][0]:
            raise DamagedCheckpointError(
                path, f"the file {name} has {found[name].size} bytes, and {files[name][0]} were written"
            )
    name = _file_with_other_bytes(path, manifest, tuple(found.items()))
    if name is not None:
        raise DamagedCheckpointError(path, f"the file {name} has other bytes than were written (its checksum differs)")


@functools.lru_cache(maxsize=16)  # `found` makes other sizes or versions another call
def _file_with_other_bytes(path: str, manifest: bytes, found: tuple[tuple[str, StoredFile], ...]) -> str | None:
    """The first file whose checksum differs."""
    stored = dict(found)
    files: dict[str, list[int | str]] = json.loads(manifest)["files"]
    for name, (_, crc, *versions) in files.items():
        if versions == [stored[name].version]:
            continue
        try:
            is_right = _crc(join(path, name), stored[name]) == crc
        except OSError as error:
            raise_if_removed(path, error)
            raise DamagedCheckpointError(path, f"the file {name} cannot be read ({error.strerror})") from error
        if not is_right:
            return name
    return None


def raise_if_removed(path: str, error: Exception) -> None:
    """Raises FileNotFoundError if the checkpoint no longer exists."""
    if not exists(path):
        raise MissingCheckpointError(
            f"the checkpoint {path} was removed while it was read. A trainer that keeps few checkpoints may do so "
            "(RunConfig.keep_checkpoint_max); take a newer one."
        ) from error


def _files(directory: str) -> Mapping[str, StoredFile]:
    """Its files by relative names, but for the manifest and the mark of one that is kept."""
    return {name: file for name, file in files_under(directory).items() if name not in (MANIFEST, KEPT)}


def _crc(path: str, stored: StoredFile) -> int:
    """The checksum of a file: the one that the store gives, else that of its bytes."""
    if stored.crc is not None:
        return stored.crc
    crc = 0
    with open_file(path) as opened:
        while chunk := opened.read(_CHUNK_BYTES):
            crc = crc32c.crc32c(chunk, crc)
    return crc


def _crc_of_json(content: object) -> int:
    return crc32c.crc32c(json.dumps(content, sort_keys=True).encode())
