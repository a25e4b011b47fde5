"""One checkpoint on its way to the disk."""

import errno
import os
import re
import threading

from jaxspec._src.checkpoint import manifest, store
from jaxspec._src.checkpoint.leftovers import remove, removed_path, workplace
from jaxspec._src.step.state import TrainState


class Writing:
    """Writes one checkpoint in a thread of its own, which nothing interrupts.

    Made first and begun afterwards, so that an interrupt at any moment leaves it known to its owner.

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
        self._once = threading.Lock()

    def begin(self) -> None:
        """Begins it, and waits until the state may be donated. An interrupt is raised only then."""
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
        """Waits until the checkpoint is whole, at most `timeout` seconds; returns whether it is. Raises what went wrong."""
        if not self._done.is_set():
            self._start()  # an interrupt may have come before
        if not self._done.wait(timeout):
            return False
        if self._error is not None:
            raise self._error
        return True

    def _start(self) -> None:
        if not self._once.locked():
            # A process that must end does not wait for it: what it leaves is removed at the next start.
            threading.Thread(target=self._run, name="jaxspec-checkpoint", daemon=True).start()

    def _run(self) -> None:
        with self._once:  # an interrupted start may have been repeated
            if not self._done.is_set():
                self._run_once()

    def _run_once(self) -> None:
        try:
            os.makedirs(os.path.dirname(self._path), exist_ok=True)
            with workplace(self._path) as place:
                self._write(os.path.join(place, "checkpoint"))
        except Exception as error:
            self._error = _clear_error(self._path, error)
        finally:
            self._free_state()
            self._done.set()

    def _write(self, whole: str) -> None:
        assert self._state is not None
        store.write(whole, self._state, self._position, self._free_state)
        manifest.write(whole, self._step)
        if os.path.lexists(self._path):
            gone = removed_path(self._path)
            os.replace(self._path, gone)
            os.replace(whole, self._path)
            remove(gone)
        else:
            os.replace(whole, self._path)

    def _free_state(self) -> None:
        self._state = None
        self._copied.set()


def _clear_error(path: str, error: Exception) -> OSError:
    """One error of a few lines: beneath orbax a full disk has hundreds."""
    cause = _first_os_error(error)
    number = None if cause is None else cause.errno
    of_files = re.search(r"os_error_code='(\d+)'", str(error))  # how the library below orbax tells it
    if of_files:
        number = int(of_files[1])
    if number in (None, errno.ENOENT) and not os.path.isdir(os.path.dirname(path)):
        number, reason = errno.ENOENT, "its directory is not there, or was removed meanwhile"
    elif number is not None:
        reason = os.strerror(number)
    else:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
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
