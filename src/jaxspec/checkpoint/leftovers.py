"""What a killed process leaves among the checkpoints: directories half written or half removed."""

import logging
import os
import re
import shutil
import socket
import time
import uuid

_logger = logging.getLogger("jaxspec")
_PARTIAL = re.compile(r"model\.ckpt-\d+\.partial-(?P<host>.+)-(?P<pid>\d+)-[0-9a-f]+(\..*)?")
_REMOVED = re.compile(r"model\.ckpt-\d+\.removed.*")
_OTHERS_PATIENCE_SECS = 24 * 3600
"""After so long a directory that another host was writing is taken for left over."""


def partial_path(path: str) -> str:
    """A new name for a checkpoint while it is written; it tells which process does."""
    return f"{path}.partial-{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def removed_path(path: str) -> str:
    """A new name for a checkpoint while it is removed, so that a reader never sees half of it."""
    return f"{path}.removed-{uuid.uuid4().hex[:8]}"


def remove_leftovers(model_dir: str) -> None:
    """Removes them, but for what a process that is still alive is writing. A failure is a warning."""
    try:
        names = os.listdir(model_dir)
    except OSError:
        return
    for name in names:
        path = os.path.join(model_dir, name)
        partial = _PARTIAL.fullmatch(name)
        if _REMOVED.fullmatch(name) or (partial and not _is_being_written(path, partial["host"], int(partial["pid"]))):
            remove(path)


def remove(path: str) -> None:
    """Removes a directory; a failure is a warning."""
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        pass  # another process was faster
    except OSError as error:
        _logger.warning("%s could not be removed: %s. Training goes on; remove it by hand.", path, error)


def _is_being_written(path: str, host: str, pid: int) -> bool:
    if host != _host():
        try:
            return time.time() - os.path.getmtime(path) < _OTHERS_PATIENCE_SECS
        except OSError:
            return False
    if pid == os.getpid():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it is somebody else's
    return True


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname()) or "host"
