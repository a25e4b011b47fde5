"""Removing checkpoints, and the directories that a killed process leaves among them, half written or half removed.

On a disk, a checkpoint is renamed to become one, and to be no longer one. In a bucket nothing can be renamed: there its
manifest is written last, and removed first.
"""

import contextlib
import glob
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator

from jaxspec._src.base import buckets, files
from jaxspec._src.base.paths import in_bucket, join
from jaxspec._src.checkpoint.checksums import MANIFEST

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

_logger = logging.getLogger("jaxspec")
_LEFTOVER = re.compile(r"model\.ckpt-\d+\.(partial|removed|orbax-checkpoint-tmp).*")
_IN_BUCKET = re.compile(r"model\.ckpt-\d+")
_LEFT_OVER_AFTER_SECS = 24 * 3600
"""Where there are no locks, a directory in which nothing was written for so long counts as left over."""


def partial_path(path: str, name: str) -> str:
    """The directory beside `path` in which it is written. No other one has this name."""
    return f"{path}.partial-{name}"


@contextlib.contextmanager
def locked_directory(path: str) -> Iterator[None]:
    """Makes a directory, and removes it at the end.

    It is locked meanwhile, so that other processes see that the one which writes is alive.
    """
    with contextlib.ExitStack() as lock:
        is_ours = False
        while not is_ours:
            os.mkdir(path)
            # Until it is locked, a process that starts may remove it as left over.
            with contextlib.suppress(FileNotFoundError):
                is_ours = _lock(path, lock) is not False and os.path.isdir(path)
        try:
            yield
        finally:
            shutil.rmtree(path, ignore_errors=True)


def remove_leftovers(model_dir: str) -> None:
    """Removes what killed processes left, but not what a process that is alive is writing. A failure is a warning.

    In a bucket a living process is one that wrote something into the directory within a day.
    """
    if in_bucket(model_dir):
        with failure_is_a_warning(model_dir):
            for path in _left_in_bucket(model_dir):
                remove(path)
        return
    for path in glob.glob(os.path.join(glob.escape(model_dir), "model.ckpt-*")):
        if _LEFTOVER.fullmatch(os.path.basename(path)):
            with failure_is_a_warning(path), contextlib.ExitStack() as lock:
                if _is_left_over(path, lock):
                    remove(path)


def remove_checkpoint(path: str) -> None:
    """Removes a checkpoint. For readers it is gone at once. A failure is a warning."""
    if in_bucket(path):
        with failure_is_a_warning(path):
            remove_from_bucket(path)
        return
    gone = _removed_path(path)
    with failure_is_a_warning(path):
        os.replace(path, gone)
        remove(gone)


def remove_from_bucket(path: str) -> None:
    """Removes what there is of a checkpoint in a bucket, the manifest first."""
    for part in (join(path, MANIFEST), path):
        with contextlib.suppress(FileNotFoundError):
            buckets.remove(part)


def _left_in_bucket(model_dir: str) -> list[str]:
    """The directories of checkpoints that have no manifest, and into which nothing was written for long."""
    directories: dict[str, dict[str, float]] = {}
    for name, file in buckets.objects_under(model_dir, "model.ckpt-").items():
        directory, _, rest = name.partition("/")
        directories.setdefault(directory, {})[rest] = file.modified
    long_ago = time.time() - _LEFT_OVER_AFTER_SECS
    return [
        join(model_dir, directory)
        for directory, files in directories.items()
        if _IN_BUCKET.fullmatch(directory) and MANIFEST not in files and max(files.values()) < long_ago
    ]


def put_in_place(written: str, path: str) -> None:
    """Renames a directory on the disk to `path`. A checkpoint that is there is removed."""
    gone = _removed_path(path)
    with contextlib.suppress(FileNotFoundError):
        os.replace(path, gone)
    os.replace(written, path)
    remove(gone)


def _removed_path(path: str) -> str:
    """A new name for a checkpoint while it is removed, so that a reader never sees half of it."""
    return f"{path}.removed-{uuid.uuid4().hex[:8]}"


def remove(path: str) -> None:
    """Removes a directory or a file. A failure is a warning."""
    with failure_is_a_warning(path):
        files.remove(path)


@contextlib.contextmanager
def failure_is_a_warning(what: str) -> Iterator[None]:
    """Within it, an error of the file system is a warning that says what could not be removed."""
    try:
        yield
    except FileNotFoundError:
        pass  # another process was faster
    except OSError as error:
        _logger.warning("%s could not be removed: %s. Training goes on; remove it by hand.", what, error)


def _is_left_over(path: str, lock: contextlib.ExitStack) -> bool:
    if ".removed" in os.path.basename(path):
        return True
    is_ours = _lock(path, lock)
    return time.time() - os.path.getmtime(path) > _LEFT_OVER_AFTER_SECS if is_ours is None else is_ours


def _lock(path: str, lock: contextlib.ExitStack) -> bool | None:
    """Locks a directory until `lock` is closed or the process ends.

    Returns:
      Whether it is locked now: False if another process has locked it; None if there are no locks.
    """
    if fcntl is None:
        return None
    descriptor = os.open(path, os.O_RDONLY)
    lock.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None  # a file system without locks
    return True
