"""SummarySaverHook: values in summaries."""

import os
import time
from collections.abc import Mapping, Sequence

from jaxspec._src.base.types import Clock
from jaxspec._src.hooks.session import Session, by_tag
from jaxspec._src.hooks.timer import SessionTimers
from jaxspec._src.spec.hook import SessionRunArgs, SessionRunContext, SessionRunHook, SessionRunValues
from jaxspec._src.summary.writer import SummaryWriter, create_file_writer


class SummarySaverHook(SessionRunHook):
    """Writes values by fetch name at the first loop, and then every so many steps or seconds.

    `SummaryWriter.array` chooses the form of each: scalar, text or histogram. Only at these times does the hook fetch
    values, and wait for them.

    Args:
      save_steps, save_secs: exactly one of them.
      output_dir: the directory of the event files; None: the summaries go where those of the run go.
      summary_writer: a writer, instead of `output_dir`.
      scaffold: an argument of TensorFlow; must be None.
      summary_op: a fetch name (see `Session`), a list of them, or a dict from tags to fetch names.
      clock: seconds since some start.
    """

    after_host_calls = False

    def __init__(
        self,
        save_steps: int | None = None,
        save_secs: float | None = None,
        output_dir: str | os.PathLike[str] | None = None,
        summary_writer: SummaryWriter | None = None,
        scaffold: object = None,
        summary_op: str | Sequence[str] | Mapping[str, str] | None = None,
        *,
        clock: Clock = time.monotonic,
    ) -> None:
        if (scaffold is None) == (summary_op is None):
            raise ValueError(
                "Exactly one of scaffold or summary_op must be provided. Here it must be summary_op, fetch names such "
                "as {'train/loss': 'loss'}."
            )
        if summary_op is None:
            raise ValueError("SummarySaverHook: a Scaffold holds no summaries here; write summary_op={'tag': 'loss'}.")
        self._timers = SessionTimers(save_secs, save_steps, ("save_secs", "save_steps"), clock)
        self._tensors = by_tag("SummarySaverHook: summary_op", summary_op)
        if summary_writer is None and output_dir is not None:
            summary_writer = create_file_writer(output_dir)
        self._given_writer = summary_writer

    def after_create_session(self, session: Session, coord: None) -> None:
        session.check_fetches(self._tensors)
        self._writer_for(session)  # for its check
        self._timers.start(session)

    def before_run(self, run_context: SessionRunContext) -> SessionRunArgs | None:
        return SessionRunArgs(self._tensors) if self._timers.is_due(run_context) else None

    def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        if run_values.results is not None:
            self._timers.triggered(run_context)
            for tag, value in run_values.results.items():
                self._writer_for(run_context.session).array(tag, value, run_context.session.global_step)

    def end(self, session: Session) -> None:
        self._writer_for(session).flush()

    def _writer_for(self, session: Session) -> SummaryWriter:
        writer = self._given_writer or session.summary_writer
        if writer is None:
            raise ValueError(
                "SummarySaverHook: a prediction has no event files of its own; pass SummarySaverHook(output_dir=...)."
            )
        return writer
