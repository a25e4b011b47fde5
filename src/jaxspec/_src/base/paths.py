"""Paths of directories as the user gives them."""

import os
import re


def absolute_path(directory: str | os.PathLike[str]) -> str:
    """The directory as an absolute local path: a later `os.chdir` does not change what it means.

    Raises:
      ValueError: for the address of a bucket or server, such as `gs://bucket/run`.
    """
    path = os.fspath(directory)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path):
        raise ValueError(
            f"{path!r} is a remote address, and only local directories are supported yet. Write to a local directory "
            "and copy it, or mount the bucket as a directory."
        )
    return os.path.abspath(path)
