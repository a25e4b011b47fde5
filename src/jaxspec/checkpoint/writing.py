"""One checkpoint on its way to the disk."""

import contextlib
import errno
import os
import shutil
import threading

from ..steps import TrainState
from . import manifest, store
from .leftovers import partial_path, removed_path


class Writing:
    """Writes one checkpoint in a thread of its own, which nothing interrupts.

    The files are written into a directory beside the checkpoint, then their manifest, then the directory gets its name: the
    checkpoint appears whole or not at all.

    Args:
      path: of the checkpoint. One that is there is replaced.
      step: that the state is behind.
      state: on one device.
      position: of the input, encoded, or None.
    """

    def __init__(self, path: str, step: int, state: TrainState, position: str | None) -> None:
        self._path, self._step = path, step
        self._state: TrainState | None = state
        self._position = position
        self._copied, self._done = threading.Event(), threading.Event()
        self._error: Exception | None = None
        # A process that must end does not wait for it: what it leaves is removed at the next start.
        threading.Thread(target=self._run, name="jaxspec-checkpoint", daemon=True).start()

    def wait_for_copy(self) -> None:
        """Waits until the state may be donated. An interrupt is raised only then."""
        interrupt: BaseException | None = None
        while not self._copied.is_set():
            try:
                self._copied.wait()
            except BaseException as raised:
                interrupt = raised
        if interrupt is not None:
            raise interrupt

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until the checkpoint is whole, at most `timeout` seconds; returns whether it is. Raises what went wrong."""
        if not self._done.wait(timeout):
            return False
        if self._error is not None:
            raise self._error
        return True

    def _run(self) -> None:
        partial = partial_path(self._path)
        try:
            os.makedirs(os.path.dirname(self._path), exist_ok=True)
            assert self._state is not None
            store.write(partial, self._state, self._position, self._free_state)
            manifest.write(partial, self._step)
            if os.path.exists(self._path):
                gone = removed_path(self._path)
                os.replace(self._path, gone)
                os.replace(partial, self._path)
                shutil.rmtree(gone, ignore_errors=True)
            else:
                os.replace(partial, self._path)
        except Exception as error:
            self._error = _clear_error(self._path, error)
            with contextlib.suppress(OSError):
                shutil.rmtree(partial, ignore_errors=True)
        finally:
            self._free_state()
            self._done.set()

    def _free_state(self) -> None:
        self._state = None
        self._copied.set()


def _clear_error(path: str, error: Exception) -> OSError:
    """One error of a few lines: beneath orbax a full disk has hundreds."""
    cause = _first_os_error(error)
    number = None if cause is None else cause.errno
    if number is None and "No space left" in str(error):
        number = errno.ENOSPC
    reason = os.strerror(number) if number is not None else f"{type(error).__name__}: {str(error).splitlines()[0:1]}"
    text = (
        f"the checkpoint {path} could not be written: {reason}. The state is still in memory, and older checkpoints are as they "
        "were: make room or mend the directory, then call train again."
    )
    clear = OSError(number, text) if number is not None else OSError(text)
    clear.__suppress_context__ = True
    return clear


def _first_os_error(error: BaseException | None) -> OSError | None:
    """The first error of the operating system among an error, its causes and its parts."""
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
