"""The hook of early stopping: when it looks, and the reasons to stop that it finds in the metrics of evaluations."""

import logging
import os
from collections.abc import Callable, Iterator
from typing import Protocol, TypeAlias

import numpy as np

from jaxspec._src.base.paths import absolute_path
from jaxspec._src.base.types import Clock
from jaxspec._src.base.validate import check_number
from jaxspec._src.hooks.session import Session
from jaxspec._src.hooks.timer import LoopTimer
from jaxspec._src.spec.hook import SessionRunContext, SessionRunHook, SessionRunValues
from jaxspec._src.summary.event_reader import read_scalars

_logger = logging.getLogger("jaxspec")

Reason: TypeAlias = Callable[[Session, int], str | None]
"""Gives the reason to stop at a global step of a session; None to continue."""
Comparison: TypeAlias = Callable[[np.float32, np.float32], bool]


class AlignedTimer(LoopTimer):
    """A loop timer whose due steps are 1, 1 + every_steps, ... of the whole run, wherever a session begins.

    Args:
      every_secs, every_steps: exactly one of them.
      clock: seconds since some start.
    """

    def __init__(self, every_secs: float | None, every_steps: int | None, clock: Clock) -> None:
        if every_secs is not None and every_steps is not None:
            raise ValueError(
                f"Only one of `run_every_secs` and `run_every_steps` must be set. Got {every_secs!r} seconds and "
                f"{every_steps!r} steps; to count steps, pass run_every_secs=None."
            )
        check_number("run_every_steps", every_steps, above=0, whole=True, instead="1 looks after every loop.")
        super().__init__(every_secs, every_steps, clock=clock)

    def start(self, step: int) -> None:
        every = self._every_steps or 1
        super().start(-(-step // every) * every)

    def next_due(self, step: int) -> int | None:
        """The first due step after `step`; None for a timer of seconds."""
        return None if self._every_steps is None else self.last_due(step + self._every_steps)

    def last_due(self, step: int) -> int:
        """The last due step up to `step`, for a timer of seconds `step` itself; at most 0 if there is none."""
        return step - (step - 1) % (self._every_steps or 1) if step > 0 else 0


class EarlyStoppingHook(SessionRunHook):
    """Ends training when there is a reason to stop.

    Args:
      reason: gives the reason to stop.
      timer: when to call `reason`.
      is_of_past: whether `reason` also knows the reason there was at an earlier step. A session that continues a run
        which has stopped ends before its first step then.
    """

    after_host_calls = False

    def __init__(self, reason: Reason, timer: AlignedTimer, *, is_of_past: bool = True) -> None:
        self._reason, self._timer, self._is_of_past = reason, timer, is_of_past

    def after_create_session(self, session: Session, coord: None) -> None:
        self._timer.start(session.global_step)
        self._at_start = self._is_of_past

    def before_run(self, run_context: SessionRunContext) -> None:
        at_start, self._at_start = self._at_start, False
        # A run that has stopped here had its reason at the last step that was due.
        step = self._timer.last_due(run_context.first_step)
        if at_start and step > 0 and self._stops(run_context.session, step):
            raise StopIteration

    def next_step(self, global_step: int) -> int | None:
        return self._timer.next_due(global_step)

    def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        step = run_context.session.global_step
        if self._timer.should_trigger_for_step(step):
            self._timer.update_last_triggered_step(step)
            if self._stops(run_context.session, step):
                run_context.request_stop()

    def _stops(self, session: Session, step: int) -> bool:
        reason = self._reason(session, step)
        if reason is not None:
            _logger.info("Requesting early stopping at global step %d: %s.", session.global_step, reason)
        return reason is not None


class HasEvalDir(Protocol):
    """The part of an estimator that early stopping uses."""

    def eval_dir(self, name: str | None = None) -> str:
        """The directory of the event files of evaluations."""


def check_estimator(estimator: object) -> None:
    """Raises TypeError unless it has an `eval_dir`: the hooks do not know the class of the estimator."""
    if isinstance(estimator, type) or not callable(getattr(estimator, "eval_dir", None)):
        raise TypeError(f"`estimator` must have type `jaxspec.TPUEstimator`. Got: {type(estimator)}")


class EvaluatedMetric:
    """One metric of the evaluations in a directory. Its values are compared in float32, which event files hold.

    Args:
      estimator: the one that is evaluated.
      name: the tag.
      eval_dir: the directory of the event files; None: that of the estimator.
      min_steps: evaluations at smaller global steps are left out.
    """

    def __init__(
        self, estimator: HasEvalDir, name: str, eval_dir: str | os.PathLike[str] | None, min_steps: int
    ) -> None:
        check_estimator(estimator)
        self._name, self._min_steps = name, min_steps
        self._eval_dir = absolute_path(estimator.eval_dir() if eval_dir is None else eval_dir)
        self._warned: set[str] = set()  # a damaged file is read many times; there is one warning

    def beyond(self, threshold: float, is_beyond: Comparison, relation: str) -> Reason:
        """The reason to stop once a value is beyond the threshold."""

        def reason(session: object, last: int) -> str | None:
            for step, value in self._up_to(last):
                if is_beyond(value, _float32(threshold)):
                    return (
                        f'at step {step}, metric "{self._name}" has value {value:g}, '
                        f"which is {relation} the configured "
                        f"threshold ({threshold})"
                    )
            return None

        return reason

    def not_improved(self, max_steps: int, is_better: Comparison, change: str) -> Reason:
        """The reason to stop once an evaluation is `max_steps` or more after the best one so far."""
        check_number(f"max_steps_without_{change}", max_steps, above=0, whole=True)

        def reason(session: object, last: int) -> str | None:
            best: np.float32 | None = None
            best_step = 0
            for step, value in self._up_to(last):
                if best is None or is_better(value, best):
                    best, best_step = value, step
                if step - best_step >= max_steps:
                    steps = f"{step - best_step} steps, from step {best_step} to {step}"
                    return f'no {change} in metric "{self._name}" for {steps}'
            return None

        return reason

    def _up_to(self, last: int) -> Iterator[tuple[int, np.float32]]:
        """(step, value) of the evaluations at the global step `last` and before, ascending.

        Raises:
          KeyError: if there are evaluations, and none of them has the metric.
        """
        evaluations = read_scalars(self._eval_dir, self._warned)
        counted = {step: metrics for step, metrics in evaluations.items() if self._min_steps <= step <= last}
        names = set().union(*counted.values())
        if counted and self._name not in names:
            raise KeyError(
                f"early stopping: the evaluations in {self._eval_dir} have no metric {self._name!r}; they have "
                f"{sorted(names)}. Pass one of these as metric_name, or the eval_dir of the evaluations that have it."
            )
        return ((step, _float32(metrics[self._name])) for step, metrics in counted.items() if self._name in metrics)


def _float32(value: float) -> np.float32:
    with np.errstate(over="ignore"):
        return np.float32(value)
