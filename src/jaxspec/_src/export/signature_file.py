"""`signature.json` of an export: what it holds, in words that people and programs read."""

import json
import re
import zlib
from collections.abc import Collection
from typing import TypedDict

from jaxspec._src.base.files import find_file, is_directory, open_file, read_file, write_file
from jaxspec._src.base.paths import join

FORMAT = 1
"""A version that changes what an export holds, so that this one cannot read it, writes a higher number."""
SIGNATURE_FILE, WEIGHTS_FILE, PROGRAMS, ASSETS = "signature.json", "weights.safetensors", "programs", "assets.extra"
BATCH = "batch"
"""The name of the first dimension in shapes."""


class ArrayForm(TypedDict):
    """The shape and dtype of an array. A dimension that is open has a name; the batch is the first."""

    shape: list[int | str]
    dtype: str


class ProgramEntry(TypedDict):
    """One program of a signature."""

    file: str
    rows: int | None
    """The only batch size that it takes; None: it takes all."""


class SignatureEntry(TypedDict):
    """One signature: its arguments by name, its results by name, its programs."""

    inputs: dict[str, ArrayForm]
    outputs: dict[str, ArrayForm]
    rowwise: bool
    """Whether what it returns for a row depends on nothing but that row."""
    programs: list[ProgramEntry]


class SignatureFile(TypedDict):
    """All of the file."""

    format: int
    written_by: dict[str, str]
    """Versions of packages, the model_fn, when and of which checkpoint."""
    global_step: int
    platforms: list[str]
    calling_convention: int
    """The version of jax.export's calling convention."""
    weights: dict[str, ArrayForm]
    signatures: dict[str, SignatureEntry]
    crc32: dict[str, int]
    """Checksums of the other files, but for the assets."""


def write_signature_file(directory: str, content: SignatureFile) -> None:
    """Writes the file into the directory of an export. Its checksums are computed here."""
    names = [WEIGHTS_FILE, *_program_files(content)]
    content = {**content, "crc32": {name: _crc32(join(directory, name)) for name in names}}
    text = re.sub(r"\[[^\[\]{}]*\]", lambda found: " ".join(found[0].split()), json.dumps(content, indent=2))
    write_file(join(directory, SIGNATURE_FILE), f"{text}\n".encode())


def read_signature_file(directory: str) -> SignatureFile:
    """Reads the file, and compares the checksums.

    Raises:
      FileNotFoundError: if there is no export in the directory.
      ValueError: if the export is not as it was written, or a newer version of the library wrote it.
    """
    path = join(directory, SIGNATURE_FILE)
    if find_file(path) is None:
        there = "holds no signature.json" if is_directory(directory) else "does not exist"
        raise FileNotFoundError(
            f"{directory} is no export: it {there}. Expected the path that export_saved_model returned, such as "
            ".../1700000000."
        )
    try:
        content: SignatureFile = json.loads(read_file(path))
        newest = content["format"]
        if newest <= FORMAT:
            damaged = [
                name for name in (WEIGHTS_FILE, *_program_files(content)) if not _is_whole(directory, name, content)
            ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}. Export the model again.") from error
    if newest > FORMAT:
        raise ValueError(
            f"{directory} has format {newest}: a newer version of jaxspec wrote it, and this version reads formats up "
            f"to {FORMAT}. Install the newer version, or export with this one."
        )
    if damaged:
        raise ValueError(f"the export {directory} is damaged: {damaged} are not as they were written. Export again.")
    return content


def is_unfinished(names: Collection[str]) -> bool:
    """Whether a directory that holds these names is an export that is not whole: `signature.json` is written last, and
    removed first."""
    return bool({WEIGHTS_FILE, PROGRAMS, ASSETS} & set(names)) and SIGNATURE_FILE not in names


def _program_files(content: SignatureFile) -> list[str]:
    programs = (program for entry in content["signatures"].values() for program in entry["programs"])
    return sorted({program["file"] for program in programs})


def _is_whole(directory: str, name: str, content: SignatureFile) -> bool:
    try:
        return _crc32(join(directory, name)) == content["crc32"][name]
    except FileNotFoundError:
        return False


def _crc32(path: str) -> int:
    value = 0
    with open_file(path) as file:
        while piece := file.read(1 << 20):
            value = zlib.crc32(piece, value)
    return value
