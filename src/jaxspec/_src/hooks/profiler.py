"""ProfilerHook: traces of what the devices do."""

import os
import time

import jax

from jaxspec._src.base.types import Clock
from jaxspec._src.hooks.session import Session
from jaxspec._src.hooks.timer import SessionTimers
from jaxspec._src.spec.hook import SessionRunContext, SessionRunHook, SessionRunValues


class ProfilerHook(SessionRunHook):
    """Traces one loop every so many steps or seconds with `jax.profiler`; TensorBoard's Profile page shows it.

    The first loop, which compiles, is not traced. It waits for the devices before and after a traced loop.

    Args:
      save_steps, save_secs: exactly one of them.
      output_dir: the directory; traces are in its `plugins/profile`.
      show_dataflow, show_memory: arguments of TensorFlow; ignored.
      clock: seconds since some start.
    """

    after_host_calls = False

    def __init__(
        self,
        save_steps: int | None = None,
        save_secs: float | None = None,
        output_dir: str | os.PathLike[str] = "",
        show_dataflow: bool = True,
        show_memory: bool = False,
        *,
        clock: Clock = time.monotonic,
    ) -> None:
        self._timers = SessionTimers(save_secs, save_steps, ("save_secs", "save_steps"), clock)
        self._output_dir = output_dir
        self._tracing = False

    def after_create_session(self, session: Session, coord: None) -> None:
        self._timers.start(session)
        self._compiled = False

    def before_run(self, run_context: SessionRunContext) -> None:
        if self._compiled and self._timers.is_due(run_context):
            _ = run_context.session.loss  # what was dispatched before is not of this loop
            jax.profiler.start_trace(self._output_dir)
            self._tracing = True

    def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        if self._tracing:
            _ = run_context.session.loss
            self.abort()
            self._timers.triggered(run_context)
        elif not self._compiled:
            self._timers.triggered(run_context)
            self._compiled = True

    def end(self, session: Session) -> None:
        self.abort()

    def abort(self) -> None:
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
