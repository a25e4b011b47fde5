"""Waiting for checkpoints that another process writes."""

import logging
import os
import time
from collections.abc import Callable, Iterator

from jaxspec._src.base.paths import absolute_path
from jaxspec._src.checkpoint.directory import latest_checkpoint

_logger = logging.getLogger("jaxspec")

_LOOK_EVERY_SECS = 1.0


def checkpoints_iterator(
    model_dir: str | os.PathLike[str],
    min_interval_secs: float = 0,
    timeout: float | None = None,
    timeout_fn: Callable[[], bool] | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[str]:
    """Yields the latest checkpoint of a directory, each time there is a new one: the loop of a separate evaluator.

    Checkpoints that come and go while the caller is busy are left out. Only whole ones are yielded, but the trainer may
    delete one later: `RunConfig(keep_checkpoint_max=...)` says how many it keeps.

    Args:
      model_dir: where; it need not exist yet.
      min_interval_secs: seconds from one checkpoint yielded to the next, at least.
      timeout: seconds to wait for a new checkpoint; None: for ever.
      timeout_fn: called, without arguments, when that time is over; True ends the iteration, False waits once more.
        None: the iteration ends.
      clock: seconds since some start.
      sleep: waits so many seconds.

    Returns:
      A generator of paths.

    Raises:
      ValueError: for negative times, when called.
      TypeError: for a timeout_fn that cannot be called.
    """
    for name, value in (("min_interval_secs", min_interval_secs), ("timeout", timeout)):
        if value is not None and value < 0:
            raise ValueError(f"checkpoints_iterator: {name} must be >= 0, got {value!r} seconds.")
    if timeout_fn is not None and not callable(timeout_fn):
        raise TypeError(
            f"checkpoints_iterator: timeout_fn must be callable, got {timeout_fn!r}. Write a function without arguments "
            "that returns whether to end."
        )
    return _new_checkpoints(absolute_path(model_dir), min_interval_secs, timeout, timeout_fn, clock, sleep)


def _new_checkpoints(
    model_dir: str,
    min_interval_secs: float,
    timeout: float | None,
    timeout_fn: Callable[[], bool] | None,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> Iterator[str]:
    last: str | None = None
    while True:
        new = _wait_for_new(model_dir, last, timeout, clock, sleep)
        if new is not None:
            last, yielded_at = new, clock()
            yield new
            wait = yielded_at + min_interval_secs - clock()
            if wait > 0:
                sleep(wait)
        elif timeout_fn is None:
            _logger.info("Timed out waiting for a new checkpoint at %s.", model_dir)
            return
        elif timeout_fn():
            return


def _wait_for_new(
    model_dir: str,
    last: str | None,
    timeout: float | None,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> str | None:
    """The latest checkpoint as soon as it is not `last`; None when the time is over. Looks at least once."""
    until = None if timeout is None else clock() + timeout
    _logger.info("Waiting for new checkpoint at %s", model_dir)
    while True:
        path = latest_checkpoint(model_dir)
        if path is not None and path != last:
            _logger.info("Found new checkpoint at %s", path)
            return path
        if until is not None and clock() + _LOOK_EVERY_SECS > until:
            return None
        sleep(_LOOK_EVERY_SECS)
