"""The directory of an export: named by the time, and there as a whole or not at all."""

import contextlib
import re
import tempfile
import time
from collections.abc import Callable, Mapping

from jaxspec._src.base.files import (
    check_writable,
    copy_file,
    find_file,
    make_directory,
    make_new_directory,
    names_in,
    publish,
    remove,
)
from jaxspec._src.base.paths import absolute_path, in_bucket, join
from jaxspec._src.export.signature_file import ASSETS, SIGNATURE_FILE

VERSION = re.compile(r"\d{10}")
"""The name of an export: when it was written, in seconds since the epoch."""
STAGED = re.compile(r"temp-\d{10}")
"""The name of an export that is being written."""


def check_base(directory: str) -> None:
    """Raises an OSError if no export can be written into the directory."""
    try:
        check_writable(directory)
    except OSError as error:
        error.add_note(
            f"export_dir_base {directory!r} must be a directory that can be written to, or made. Choose another one."
        )
        raise


def check_assets(assets_extra: Mapping[str, str] | None) -> dict[str, str]:
    """The sources of assets as absolute paths, by their names in the export.

    Raises:
      TypeError, ValueError: for names that are not relative paths within the export.
      FileNotFoundError: for a source that is not there.
    """
    if assets_extra is None:
        return {}
    if not isinstance(assets_extra, Mapping):
        raise TypeError(f"assets_extra must be a dict of name: path, got {assets_extra!r}.")
    sources = {}
    for name, source in assets_extra.items():
        if not isinstance(name, str) or name.startswith("/") or {"", ".", ".."} & set(name.split("/")):
            raise ValueError(
                f"assets_extra has the name {name!r}. Expected a relative path within the export, such as 'vocab.txt': "
                "the file becomes assets.extra/vocab.txt."
            )
        if any(other != name and str(other).startswith(f"{name}/") for other in assets_extra):
            raise ValueError(f"assets_extra has the name {name!r}, and others below it. A file is no directory.")
        sources[name] = absolute_path(source)
        if find_file(sources[name]) is None:
            raise FileNotFoundError(f"assets_extra[{name!r}] is {source!r}: there is no such file.")
    return sources


def write_directory(base: str, write: Callable[[str], None], assets: Mapping[str, str]) -> str:
    """Writes an export into a new directory of `base`, and returns its path.

    Args:
      write: called with the path of an empty directory on the disk, into which it writes files.
      assets: from `check_assets`.

    Raises:
      OSError: if it cannot be written. Then nothing is left.
    """
    try:
        with contextlib.ExitStack() as stack:
            if in_bucket(base):
                staged = stack.enter_context(tempfile.TemporaryDirectory())
            else:
                make_directory(base)
                staged = _new_name(base, lambda name: _made(join(base, f"temp-{name}")))
                stack.callback(_remove_if_there, staged)
            for name, source in assets.items():
                copy_file(source, join(staged, ASSETS, *name.split("/")))
            write(staged)
            return _new_name(base, lambda name: _published(staged, join(base, name)))
    except OSError as error:
        error.add_note(
            f"The export was not written to {base}, and nothing is left of it. Free space, or choose another "
            "export_dir_base."
        )
        raise


def remove_export(path: str) -> None:
    """Removes an export. From the first moment on it is none: what describes it goes first."""
    _remove_if_there(join(path, SIGNATURE_FILE))
    remove(path)


def _new_name(base: str, take: Callable[[str], str]) -> str:
    """What `take` returns for a name that it finds free: the time, or more than the name of the newest export."""
    number = max([int(time.time()), *(int(name) + 1 for name in names_in(base) if VERSION.fullmatch(name))])
    while True:
        try:
            return take(f"{number:010}")
        except FileExistsError:
            number += 1


def _made(path: str) -> str:
    make_new_directory(path)
    return path


def _published(staged: str, path: str) -> str:
    publish(staged, path, last=SIGNATURE_FILE)
    return path


def _remove_if_there(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        remove(path)
