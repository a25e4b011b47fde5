"""Summaries of values by name."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from ..summary import SummaryWriter, create_file_writer
from .session_run_hook import SessionRunArgs, SessionRunContext, SessionRunHook, SessionRunValues
from .timer import LoopTimer


class SummarySaverHook(SessionRunHook):
    """Writes values by fetch name at the first loop and then every so many steps or seconds.

    Each is written in the form that shows it best: `SummaryWriter.array`. Only then does it fetch, and wait for,
    anything.

    Args:
      save_steps, save_secs: exactly one of them.
      output_dir: where the event files go; None: where those of the run go.
      summary_writer: a writer instead.
      scaffold: TensorFlow's; must be None.
      summary_op: a fetch name (see `Session`), a list of them, or a dict from tags to fetch names.
      clock: seconds since some start.
    """

    after_host_calls = False

    def __init__(
        self,
        save_steps: int | None = None,
        save_secs: float | None = None,
        output_dir: Any = None,
        summary_writer: SummaryWriter | None = None,
        scaffold: Any = None,
        summary_op: Any = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if (scaffold is None) == (summary_op is None):
            raise ValueError(
                "Exactly one of scaffold or summary_op must be provided. Here it must be summary_op, fetch names such as "
                "{'train/loss': 'loss'}."
            )
        if scaffold is not None:
            raise ValueError("SummarySaverHook: a Scaffold holds no summaries here; write summary_op={'tag': 'loss'}.")
        self._timer = LoopTimer(save_secs, save_steps, clock=clock)
        self._names, self._writer = summary_op, summary_writer
        if summary_writer is None and output_dir is not None:
            self._writer = create_file_writer(output_dir)

    def after_create_session(self, session: Any, coord: Any) -> None:
        session.check_fetches(self._names)
        names = [self._names] if isinstance(self._names, str) else self._names
        self._tensors = dict(names) if isinstance(names, Mapping) else {name: name for name in names}
        if self._writer is None:
            self._writer = session.summary_writer
        self._started = False

    def before_run(self, run_context: SessionRunContext) -> SessionRunArgs | None:
        if not self._started:
            self._timer.start(run_context.first_step)
            self._started = True
        self._due = self._timer.should_trigger_for_step(run_context.last_step + 1)
        return SessionRunArgs(self._tensors) if self._due else None

    def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        assert self._writer is not None
        if self._due:
            self._timer.update_last_triggered_step(run_context.last_step + 1)
            for tag, value in run_values.results.items():
                self._writer.array(tag, value, run_context.session.global_step)

    def end(self, session: Any) -> None:
        assert self._writer is not None
        self._writer.flush()
