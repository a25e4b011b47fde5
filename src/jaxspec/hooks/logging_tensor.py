"""Logging values by name."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .session_run_hook import SessionRunArgs, SessionRunContext, SessionRunHook, SessionRunValues
from .timer import LoopTimer

_logger = logging.getLogger("jaxspec")


class LoggingTensorHook(SessionRunHook):
    """Logs the values of fetch names at the first loop and then every so many steps or seconds, and at the end if asked.

    Only then does it fetch, and wait for, anything.

    Args:
      tensors: fetch names (see `Session`), or a dict from tags to fetch names.
      every_n_iter: steps between two lines, counted from the first of the session.
      every_n_secs: seconds between two lines.
      at_end: whether to log at the end of the session, too.
      formatter: makes the line from `{tag: value}`; None: "tag = value, ...".
      clock: seconds since some start.

    Raises:
      ValueError: unless exactly one of every_n_iter and every_n_secs, or at_end alone, is given.
    """

    after_host_calls = False

    def __init__(
        self,
        tensors: Any,
        every_n_iter: int | None = None,
        every_n_secs: float | None = None,
        at_end: bool = False,
        formatter: Callable[[dict[str, Any]], str] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        neither = every_n_iter is None and every_n_secs is None
        if (neither and not at_end) or (every_n_iter is not None and every_n_secs is not None):
            raise ValueError(
                "either at_end and/or exactly one of every_n_iter and every_n_secs must be provided. Got "
                f"every_n_iter={every_n_iter!r}, every_n_secs={every_n_secs!r}, at_end={at_end!r}."
            )
        if every_n_iter is not None and every_n_iter <= 0:
            raise ValueError(f"invalid every_n_iter={every_n_iter}. It must be positive.")
        self._tensors = (
            {tag: tensors[tag] for tag in sorted(tensors)}
            if isinstance(tensors, Mapping)
            else {name: name for name in tensors}
        )
        self._timer = None if neither else LoopTimer(every_n_secs, every_n_iter, clock=clock)
        self._at_end, self._formatter = at_end, formatter

    def after_create_session(self, session: Any, coord: Any) -> None:
        session.check_fetches(self._tensors)
        self._started = False

    def before_run(self, run_context: SessionRunContext) -> SessionRunArgs | None:
        if self._timer is None:
            return None
        if not self._started:
            self._timer.start(run_context.first_step)
            self._started = True
        self._due = self._timer.should_trigger_for_step(run_context.last_step + 1)
        return SessionRunArgs(self._tensors) if self._due else None

    def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        if self._timer is not None and self._due:
            seconds, _ = self._timer.update_last_triggered_step(run_context.last_step + 1)
            self._log(run_values.results, seconds)

    def end(self, session: Any) -> None:
        if self._at_end:
            self._log(session.run(self._tensors), None)

    def _log(self, values: dict[str, Any], seconds: float | None) -> None:
        if self._formatter is not None:
            _logger.info(self._formatter(values))
            return
        with np.printoptions(suppress=True):
            text = ", ".join(f"{tag} = {value}" for tag, value in values.items())
        _logger.info("%s%s", text, "" if seconds is None else f" ({seconds:.3f} sec)")
