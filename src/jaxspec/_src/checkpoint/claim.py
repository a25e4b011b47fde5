"""The claim of a training on its model_dir: a small file, which keeps a second training out."""

import contextlib
import dataclasses
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator

from jaxspec._src.base.files import remove
from jaxspec._src.base.paths import join, split
from jaxspec._src.base.types import Clock
from jaxspec._src.checkpoint.claim_holder import Holder

_logger = logging.getLogger("jaxspec")
_NAME = ".trainer.json"
_REFRESH_SECS = 10.0
_STALE_SECS = 40
"""A claim of another machine that is not refreshed for so long is stale."""
_OLD_SECS = 3600.0
"""One that says that it was refreshed so long ago is stale at once: the clocks of two hosts differ by less."""


@contextlib.contextmanager
def claimed(
    model_dir: str, *, clock: Clock = time.time, sleep: Callable[[float], None] = time.sleep
) -> Iterator["Claim"]:
    """Within it, `model_dir` is claimed for one training.

    The claim of a training that was killed is taken over, with a warning: at once if it ran on this machine, otherwise
    when it has not been refreshed for a while. A directory that cannot be written to is not claimed.

    Args:
      model_dir: absolute, or in a bucket; made if it does not exist.
      clock: seconds since the epoch.
      sleep: waits so many seconds.

    Raises:
      RuntimeError: if another training, in any process or thread, has claimed it.
    """
    path = join(model_dir, _NAME)
    claim = Claim(path, Holder.of_this_process(clock()), clock)
    _refuse_if_claimed(path, clock, sleep)
    try:
        claim.begin()
        yield claim
    finally:
        claim.end()


class Claim:
    """The claim of one training.

    Args:
      path: of its file.
      holder: this process.
      clock: seconds since the epoch.
    """

    def __init__(self, path: str, holder: Holder, clock: Clock) -> None:
        self._path, self._holder, self._clock = path, holder, clock
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="jaxspec-claim", daemon=True)

    def begin(self) -> None:
        """Writes the file, and refreshes it from now on."""
        self._holder.hold()
        try:
            self._holder.write(self._path)
        except OSError as error:
            _logger.info("model_dir cannot be written to (%s): other trainings of it are not kept out.", error)
            return
        self._thread.start()

    def check(self) -> None:
        """Raises a RuntimeError if another training has taken the claim over: this one must not write any more."""
        other = Holder.read(self._path)
        if other is not None and other.id != self._holder.id:
            raise RuntimeError(
                f"{split(self._path)[0]} was taken over by another training, in {other}: this one did not "
                "refresh its claim in time. It ends without writing anything more. Give each training a model_dir of "
                "its own."
            )

    def end(self) -> None:
        """Removes the file."""
        self._holder.release()
        self._ended.set()
        if self._holder.pid != os.getpid() or self._thread.ident is None:
            return  # in a child that the training has forked; or not claimed
        self._thread.join()
        if self._is_ours():
            with contextlib.suppress(OSError):
                remove(self._path)

    def _is_ours(self) -> bool:
        found = Holder.read(self._path)
        return found is not None and found.id == self._holder.id

    def _refresh(self) -> None:
        while not self._ended.wait(_REFRESH_SECS) and self._is_ours():
            with contextlib.suppress(OSError):  # the next time may succeed
                dataclasses.replace(self._holder, refreshed=self._clock()).write(self._path)


def _refuse_if_claimed(path: str, clock: Clock, sleep: Callable[[float], None]) -> None:
    """Raises a RuntimeError if another training has the claim; a stale one is a warning."""
    holder = Holder.read(path)
    if holder is None:
        return
    is_alive = holder.is_alive()
    if is_alive is None:
        is_alive = _is_refreshed(path, holder, clock, sleep)
    if is_alive:
        raise RuntimeError(
            f"{split(path)[0]} is being trained by {holder}. Two trainings would overwrite each other's "
            "checkpoints: give this one another model_dir, or end that one first. If there is no such training, "
            f"remove {path}."
        )
    _logger.warning("The training of %s by %s has ended without saying so: it is taken over.", path, holder)


def _is_refreshed(path: str, holder: Holder, clock: Clock, sleep: Callable[[float], None]) -> bool:
    """Whether the file is written again while this waits."""
    if clock() - holder.refreshed > _OLD_SECS:
        return False
    _logger.warning("%s is claimed by %s. If that is alive, it shows within %d s.", path, holder, _STALE_SECS)
    for _ in range(_STALE_SECS):
        sleep(1)
        found = Holder.read(path)
        if found != holder:
            return found is not None
    return False
