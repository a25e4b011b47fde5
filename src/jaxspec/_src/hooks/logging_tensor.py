"""LoggingTensorHook: values in log lines."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import numpy as np

from jaxspec._src.base.types import Clock
from jaxspec._src.hooks.session import Session, by_tag
from jaxspec._src.hooks.timer import SessionTimers
from jaxspec._src.spec.hook import SessionRunArgs, SessionRunContext, SessionRunHook, SessionRunValues

_logger = logging.getLogger("jaxspec")

Formatter: TypeAlias = Callable[[dict[str, np.ndarray]], str]
"""Makes a log line from `{tag: value}`."""


class LoggingTensorHook(SessionRunHook):
    """Logs the values of fetch names at the first loop, then every so many steps or seconds, and, with `at_end`, at the
    end.

    Only at these times does it fetch values, and wait for them.

    Args:
      tensors: a fetch name (see `Session`), a list of them, or a dict from tags to fetch names.
      every_n_iter: steps between two lines, counted from the first of the session.
      every_n_secs: seconds between two lines.
      at_end: whether to log at the end of the session, too. A session without a step has nothing to log.
      formatter: makes the line from `{tag: value}`; None: "tag = value, ...".
      clock: seconds since some start.

    Raises:
      ValueError: unless exactly one of every_n_iter and every_n_secs, or at_end alone, is given.
    """

    after_host_calls = False

    def __init__(
        self,
        tensors: str | Iterable[str] | Mapping[str, str],
        every_n_iter: int | None = None,
        every_n_secs: float | None = None,
        at_end: bool = False,
        formatter: Formatter | None = None,
        *,
        clock: Clock = time.monotonic,
    ) -> None:
        neither = every_n_iter is None and every_n_secs is None
        if (neither and not at_end) or (every_n_iter is not None and every_n_secs is not None):
            raise ValueError(
                "either at_end and/or exactly one of every_n_iter and every_n_secs must be provided. Got "
                f"every_n_iter={every_n_iter!r}, every_n_secs={every_n_secs!r}, at_end={at_end!r}."
            )
        self._tensors = by_tag("LoggingTensorHook: tensors", tensors)
        names = ("every_n_secs", "every_n_iter")
        self._timers = None if neither else SessionTimers(every_n_secs, every_n_iter, names, clock)
        self._at_end, self._formatter = at_end, formatter

    def after_create_session(self, session: Session, coord: None) -> None:
        session.check_fetches(self._tensors)
        if self._timers is not None:
            self._timers.start(session)

    def before_run(self, run_context: SessionRunContext) -> SessionRunArgs | None:
        is_due = self._timers is not None and self._timers.is_due(run_context)
        return SessionRunArgs(self._tensors) if is_due else None

    def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        if self._timers is not None and run_values.results is not None:
            seconds, _ = self._timers.triggered(run_context)
            self._log(run_values.results, seconds)

    def end(self, session: Session) -> None:
        if self._at_end and session.has(self._tensors):
            self._log(session.run(self._tensors), None)

    def _log(self, values: dict[str, np.ndarray], seconds: float | None) -> None:
        if self._formatter is not None:
            _logger.info(self._formatter(values))
            return
        with np.printoptions(suppress=True):
            text = ", ".join(f"{tag} = {value}" for tag, value in values.items())
        _logger.info("%s%s", text, "" if seconds is None else f" ({seconds:.3f} sec)")
