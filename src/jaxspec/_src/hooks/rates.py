"""StepCounterHook, ExamplesPerSecondHook: how fast training is."""

import logging
import os
import time
from typing import NamedTuple, Protocol

from jaxspec._src.base.types import Clock
from jaxspec._src.base.validate import check_number
from jaxspec._src.hooks.session import Session
from jaxspec._src.hooks.timer import SessionTimers
from jaxspec._src.spec.hook import SessionRunContext, SessionRunHook, SessionRunValues
from jaxspec._src.summary.sink import Sink
from jaxspec._src.summary.writer import create_file_writer

_logger = logging.getLogger("jaxspec")


class StepCounterHook(SessionRunHook):
    """Logs and writes `global_step/sec` every so many steps or seconds. The first interval begins after the first loop.

    In training `TFLOP/sec` and `MFU` come with it, where they are known: see `Rates`. It fetches nothing. So a rate
    counts steps that are dispatched and not yet done.

    Args:
      every_n_steps, every_n_secs: exactly one of them.
      output_dir: the directory of the event files; None, without a summary_writer: nothing is written.
      summary_writer: a writer (any `summary.Sink`), instead of `output_dir`.
      clock: seconds since some start.
    """

    after_host_calls = False
    _batch_size: int | None = None

    def __init__(
        self,
        every_n_steps: int | None = 100,
        every_n_secs: float | None = None,
        output_dir: str | os.PathLike[str] | None = None,
        summary_writer: Sink | None = None,
        *,
        clock: Clock = time.monotonic,
    ) -> None:
        if (every_n_steps is None) == (every_n_secs is None):
            raise ValueError(
                "exactly one of every_n_steps and every_n_secs should be provided. Got "
                f"every_n_steps={every_n_steps!r}, every_n_secs={every_n_secs!r}; every_n_steps is 100 unless it is "
                "None."
            )
        self._timers = SessionTimers(every_n_secs, every_n_steps, ("every_n_secs", "every_n_steps"), clock)
        if summary_writer is None and output_dir is not None:
            summary_writer = create_file_writer(output_dir)
        self._writer = summary_writer

    def after_create_session(self, session: Session, coord: None) -> None:
        self._timers.start(session)

    def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        if self._timers.is_due(run_context):
            seconds, steps = self._timers.triggered(run_context)
            session: Session = run_context.session
            record_rates(self._writer, run_context.last_step + 1, seconds, steps, self._batch_size, session)

    def end(self, session: Session) -> None:
        if self._writer is not None:
            self._writer.flush()


class Compute(Protocol):
    """What a step computes, and what the devices could: a `Session`, or a `Program`."""

    @property
    def flops_per_step(self) -> float | None: ...
    @property
    def peak_flops_per_sec(self) -> float | None: ...


def flops_rates(compute: Compute | None, steps_per_sec: float) -> tuple[float | None, float | None]:
    """(FLOP/s of all devices together, the share of their peak, which is called MFU); None where it is not known."""
    if compute is None or compute.flops_per_step is None:
        return None, None
    flops_per_sec, peak = compute.flops_per_step * steps_per_sec, compute.peak_flops_per_sec
    return flops_per_sec, None if peak is None else flops_per_sec / peak


def record_rates(
    writer: Sink | None,
    step: int,
    seconds: float | None,
    steps: int | None,
    batch_size: int | None,
    compute: Compute | None,
) -> None:
    """Logs the rates of an interval that ends at a global step, and writes them if there is a writer.

    Args:
      seconds, steps: the length of the interval; None or 0: there are no rates.
      batch_size: examples in a step; None: unknown.
      compute: None: unknown.
    """
    if not seconds or not steps:
        return
    per_sec = steps / seconds
    flops_per_sec, mfu = flops_rates(compute, per_sec)
    rates = {
        "global_step/sec": per_sec,
        "examples/sec": None if batch_size is None else batch_size * per_sec,
        "TFLOP/sec": None if flops_per_sec is None else flops_per_sec / 1e12,
        "MFU": mfu,
    }
    for tag, rate in rates.items():
        if rate is not None:
            _logger.info("%s: %g", tag, rate)
            if writer is not None:
                writer.scalar(tag, rate, step)


class Rates(NamedTuple):
    """How fast a session was, from the end of its first loop, which compiles, to its end.

    The time of checkpoints, and of evaluations at them, is included.
    """

    steps_per_sec: float
    examples_per_sec: float
    compile_secs: float
    """The seconds of the first loop, minus the time of its steps at the later rate: tracing, compiling and loading."""
    flops_per_sec: float | None = None
    """Floating point operations of all devices together, in matrix products and convolutions; None for a model without
    any."""
    mfu: float | None = None
    """The share of the devices' peak, 0 to 1 (model FLOPs utilization); None where it is not known, as of CPUs."""


class ExamplesPerSecondHook(StepCounterHook):
    """A `StepCounterHook` that also logs and writes `examples/sec`. `result()` returns the rates of the whole session.

    It waits for the devices twice: after the first loop and at the end.

    Args:
      batch_size: examples in a global batch.
      every_n_steps, every_n_secs, output_dir, summary_writer, clock: as in `StepCounterHook`.
    """

    _batch_size: int

    def __init__(
        self,
        batch_size: int,
        every_n_steps: int | None = 100,
        every_n_secs: float | None = None,
        output_dir: str | os.PathLike[str] | None = None,
        summary_writer: Sink | None = None,
        *,
        clock: Clock = time.monotonic,
    ) -> None:
        super().__init__(every_n_steps, every_n_secs, output_dir, summary_writer, clock=clock)
        check_number("batch_size", batch_size, above=0, whole=True, required=True)
        self._batch_size, self._clock = batch_size, clock
        self._result: Rates | None = None

    def begin(self) -> None:
        self._marks: list[tuple[float, int]] = []
        """The time and the global step before and after the first loop."""
        self._result = None

    def before_run(self, run_context: SessionRunContext) -> None:
        if not self._marks:
            self._marks.append((self._clock(), run_context.first_step))

    def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        self._end = run_context.last_step + 1
        if len(self._marks) == 1:
            _ = run_context.session.loss  # waits for the devices
            self._marks.append((self._clock(), self._end))
        super().after_run(run_context, run_values)

    def end(self, session: Session) -> None:
        super().end(session)
        _ = session.loss
        if len(self._marks) < 2:
            return
        (began, start), (compiled, step) = self._marks
        elapsed = self._clock() - compiled
        if self._end > step and elapsed > 0:
            rate = (self._end - step) / elapsed
            compile_secs = max(0.0, compiled - began - (step - start) / rate)
            self._result = Rates(rate, rate * self._batch_size, compile_secs, *flops_rates(session, rate))

    def result(self) -> Rates:
        """The rates of the last session.

        Raises:
          ValueError: if it had no loop after its first one, or has not ended.
        """
        if self._result is None:
            raise ValueError(
                "ExamplesPerSecondHook.result: nothing was measured. Train for more than one loop (the first one "
                "compiles), and ask when train has returned."
            )
        return self._result
