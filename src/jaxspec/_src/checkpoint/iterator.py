"""checkpoints_iterator: waiting for the checkpoints that another process writes."""

import logging
import os
import time
from collections.abc import Callable, Iterator

from jaxspec._src.base.paths import absolute_path
from jaxspec._src.base.types import Clock
from jaxspec._src.base.validate import check_callable, check_number
from jaxspec._src.checkpoint.latest import latest_checkpoint

_logger = logging.getLogger("jaxspec")

_LOOK_EVERY_SECS = 1.0


def checkpoints_iterator(
    model_dir: str | os.PathLike[str],
    min_interval_secs: float = 0,
    timeout: float | None = None,
    timeout_fn: Callable[[], bool] | None = None,
    *,
    clock: Clock = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[str]:
    """Yields the latest checkpoint of a directory whenever there is a new one: the loop of a separate evaluator.

    Checkpoints that come and go while the caller is busy are left out. Only complete ones are yielded, but the trainer
    may remove one later: `RunConfig(keep_checkpoint_max=...)` says how many it keeps.

    Args:
      model_dir: the directory. It need not exist yet.
      min_interval_secs: the least number of seconds between two yields.
      timeout: how many seconds to wait for a new checkpoint; None waits for ever.
      timeout_fn: a function without arguments, called at each timeout: True ends the iteration, False waits once more.
        None ends the iteration at the first timeout.
      clock: seconds since some start.
      sleep: waits for so many seconds.

    Returns:
      A generator of paths.

    Raises:
      ValueError: for negative times. This and the next are raised when the function is called.
      TypeError: for a timeout_fn that cannot be called.
    """
    for name, value in (("min_interval_secs", min_interval_secs), ("timeout", timeout)):
        check_number(name, value, minimum=0)
    if timeout_fn is not None:
        check_callable("timeout_fn", timeout_fn, "Write a function without arguments that returns whether to end.")
    directory = absolute_path(model_dir)

    def wait_for_new(last: str | None) -> str | None:
        """The latest checkpoint as soon as it is not `last`, or None at the timeout. Looks at least once."""
        until = None if timeout is None else clock() + timeout
        _logger.info("Waiting for new checkpoint at %s", directory)
        while True:
            path = latest_checkpoint(directory)
            if path is not None and path != last:
                _logger.info("Found new checkpoint at %s", path)
                return path
            if until is not None and clock() + _LOOK_EVERY_SECS > until:
                return None
            sleep(_LOOK_EVERY_SECS)

    def new_checkpoints() -> Iterator[str]:
        last: str | None = None
        while True:
            new = wait_for_new(last)
            if new is not None:
                last, yielded_at = new, clock()
                yield new
                wait = yielded_at + min_interval_secs - clock()
                if wait > 0:
                    sleep(wait)
            elif timeout_fn is None:
                _logger.info("Timed out waiting for a new checkpoint at %s.", directory)
                return
            elif timeout_fn():
                return

    return new_checkpoints()
