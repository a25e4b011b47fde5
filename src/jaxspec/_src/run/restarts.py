"""Restarts of a training: which errors they may cure, and how many there are."""

import logging
from collections.abc import Callable

import jax

_logger = logging.getLogger("jaxspec")

_CURABLE = ("ABORTED", "CANCELLED", "DATA_LOSS", "DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE", "UNKNOWN")
"""The status codes of errors of a device or of the runtime. The other ones are of the program, and come again."""


def may_be_cured(error: BaseException) -> bool:
    """Whether a restart may cure an error: one of the devices or the runtime, and not of a callback of the user's."""
    text = str(error)
    return (
        isinstance(error, jax.errors.JaxRuntimeError)
        and text.startswith(tuple(f"{code}:" for code in _CURABLE))
        and "CpuCallback error" not in text
    )


def with_restarts(most: int, run: Callable[[], None], start_over: Callable[[], None], ends: Callable[[], bool]) -> None:
    """Calls `run`, and again after each error that a restart may cure. Any other error is raised as it is.

    Args:
      most: how many restarts there are at most; the error after the last one gets a note that counts them.
      run: the training. Its second call goes on where the newest checkpoint is.
      start_over: called before each restart.
      ends: whether a signal ends the training: there is no restart then.
    """
    count = 0
    while True:
        try:
            return run()
        except Exception as error:
            if not most or not may_be_cured(error) or ends():
                raise
            if jax.process_count() > 1:
                error.add_note(
                    "RunConfig(max_restarts=...) restarts a training of one process. With several, whatever has "
                    "started the processes must start all of them again; they go on from the newest checkpoint."
                )
                raise
            if count == most:
                error.add_note(f"raised after {most} restarts, as RunConfig(max_restarts={most}) says")
                raise
            count += 1
            _logger.warning(
                "Restart %d of %d, after an error of the devices or the runtime:", count, most, exc_info=error
            )
        start_over()
