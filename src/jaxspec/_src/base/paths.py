"""Paths of directories as the user gives them: on the disk or in a bucket."""

import importlib.util
import os
import posixpath
import re

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
