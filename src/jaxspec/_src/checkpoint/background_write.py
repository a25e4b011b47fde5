"""The writing of one checkpoint, in the background."""

import errno
import os
import re
import tempfile
import threading
from collections.abc import Callable, Mapping

from jaxspec._src.base import buckets
from jaxspec._src.base.files import is_directory, make_directory
from jaxspec._src.base.paths import in_bucket, join, split
from jaxspec._src.base.types import PyTree
from jaxspec._src.checkpoint import backend, checksums
from jaxspec._src.checkpoint.removal import locked_directory, partial_path, put_in_place, remove_from_bucket
from jaxspec._src.device.processes import is_first_process


class BackgroundWrite:
    """Writes one checkpoint in a thread of its own, which nothing interrupts.

    It is made first and begun afterwards, so that its owner knows of it if an interrupt comes at any moment.

    The checkpoint appears whole or not at all. On a disk the files are written into a directory beside it, which is
    renamed at the end. In a bucket they are written to their final place, and the manifest last. orbax cannot write to
    S3: there the files are written on the disk, and copied.

    Args:
      path: of the checkpoint. One that exists is replaced.
      step: the number of updates that the state has had.
      parts: as in `backend.save`. One process gives arrays on the host, several give those on the devices of all.
      name: of the directory beside the checkpoint, the same in all processes.
      operation: as in `backend.save`.
      then: called in the thread when the checkpoint is in its place, in process 0. It may raise nothing.
    """

    def __init__(
        self,
        path: str,
        step: int,
        parts: Mapping[str, PyTree],
        name: str,
        operation: int | None = None,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        self._path, self._step, self._parts = path, step, parts
        self._name, self._operation, self._then = name, operation, then
        self._copied, self._done = threading.Event(), threading.Event()
        self._error: Exception | None = None
        self._once = threading.Lock()

    def begin(self) -> None:
        """Starts the thread, and waits until the state may be donated. An interrupt is raised only then."""
        interrupt: BaseException | None = None
        while not self._copied.is_set():
            try:
                self._start()
                self._copied.wait()
            except BaseException as raised:
                interrupt = raised
        if interrupt is not None:
            raise interrupt

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until the checkpoint is written, at most `timeout` seconds, and returns whether it is.

        Raises:
          OSError: if it could not be written.
        """
        if not self._done.is_set():
            self._start()  # an interrupt may have come before
        if not self._done.wait(timeout):
            return False
        if self._error is not None:
            raise self._error
        return True

    @property
    def failed(self) -> bool:
        """Whether it is known that the checkpoint could not be written: `wait` raises the error."""
        return self._done.is_set() and self._error is not None

    def _start(self) -> None:
        if not self._once.locked():
            # A process that must end does not wait for this thread: what it leaves is removed at the next start.
            threading.Thread(target=self._run, name="jaxspec-checkpoint", daemon=True).start()

    def _run(self) -> None:
        with self._once:  # an interrupted start may have been repeated
            if self._done.is_set():
                return
            if self._operation is None:
                self._copied.set()
            try:
                if not is_first_process():  # process 0 does the rest
                    self._save(self._path if in_bucket(self._path) else self._partial_checkpoint)
                elif in_bucket(self._path):
                    self._write_into_bucket()
                else:
                    make_directory(split(self._path)[0])
                    with locked_directory(split(self._partial_checkpoint)[0]):
                        self._write_on_disk(self._partial_checkpoint)
                if is_first_process():
                    self._then()
            except Exception as error:
                self._error = _short_error(self._path, error)
            finally:
                self._parts = {}
                self._copied.set()
                self._done.set()

    @property
    def _partial_checkpoint(self) -> str:
        return join(partial_path(self._path, self._name), "checkpoint")

    def _write_on_disk(self, written: str) -> None:
        self._save(written)
        checksums.write_manifest(written, self._step)
        put_in_place(written, self._path)

    def _write_into_bucket(self) -> None:
        remove_from_bucket(self._path)
        if backend.reaches(self._path):
            self._save(self._path)
            checksums.write_manifest(self._path, self._step)
            return
        with tempfile.TemporaryDirectory() as directory:
            written = join(directory, "checkpoint")
            self._save(written)
            buckets.upload(written, self._path)
            checksums.write_manifest(self._path, self._step, copy=written)

    def _save(self, directory: str) -> None:
        backend.save(directory, self._parts, self._copied.set, self._operation)


def _short_error(path: str, error: Exception) -> OSError:
    """An error of a few lines: for a full disk, that of orbax has hundreds."""
    in_text = re.search(r"os_error_code='(\d+)'", str(error))  # so tensorstore, below orbax, gives it
    cause = _first_os_error(error)
    number = int(in_text[1]) if in_text else None if cause is None else cause.errno
    if number in (None, errno.ENOENT) and not in_bucket(path) and not is_directory(split(path)[0]):
        number, reason = errno.ENOENT, "its directory does not exist, or was removed meanwhile"
    elif cause is not None and cause.errno == number and cause.strerror:
        reason = cause.strerror
    elif number is not None:
        reason = os.strerror(number)
    else:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
        number = errno.EACCES if buckets.is_refusal(reason) else None
    text = (
        f"the checkpoint {path} could not be written: {reason}. The state is still in memory, and older checkpoints "
        "are as they were: make room, or repair the directory or the permission to write to it, then call train again."
    )
    short = OSError(number, text) if number is not None else OSError(text)
    short.__suppress_context__ = True
    return short


def _first_os_error(error: BaseException | None) -> OSError | None:
    """The first error of the operating system among an error, its causes, and the parts of a group of errors."""
    seen: list[BaseException] = []
    waiting = [error]
    while waiting:
        one = waiting.pop(0)
        if one is None or one in seen:
            continue
        seen.append(one)
        if isinstance(one, OSError) and one.errno is not None:
            return one
        waiting += [one.__cause__, one.__context__, *getattr(one, "exceptions", ())]
    return None
