"""Early stopping: hooks that end training by what the evaluations so far have found."""

import inspect
import logging
import operator
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxspec._src.base.callables import describe
from jaxspec._src.base.validate import check_number
from jaxspec._src.hooks.timer import LoopTimer
from jaxspec._src.spec.hook import SessionRunContext, SessionRunHook, SessionRunValues
from jaxspec._src.summary.event_reader import read_scalars

_logger = logging.getLogger("jaxspec")


def make_early_stopping_hook(
    estimator: Any,
    should_stop_fn: Callable[[], bool],
    run_every_secs: float | None = 60,
    run_every_steps: int | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> SessionRunHook:
    """A training hook that ends training once `should_stop_fn` returns True.

    Args:
      estimator: the one that trains.
      should_stop_fn: a function without arguments. When it is asked, every step so far is done and host_call has run
        for it.
      run_every_secs, run_every_steps: how often it is asked. Exactly one; for steps pass `run_every_secs=None`. With
        steps it is asked after the global steps 1, 1 + run_every_steps, ..., also in a run that was resumed; loops end
        there, so a small number makes short loops.
      clock: seconds since some start.

    Raises:
      TypeError: for what is no estimator, or no function without arguments.
      ValueError: for both or neither of run_every_secs and run_every_steps.
    """
    _check_estimator(estimator)
    if not callable(should_stop_fn):
        raise TypeError(
            f"`should_stop_fn` must be callable, given: {should_stop_fn!r}. Write a function without arguments that returns "
            "whether to stop."
        )
    try:
        inspect.signature(should_stop_fn).bind()
    except TypeError as error:
        raise TypeError(
            f"`should_stop_fn` ({describe(should_stop_fn)}) is called without arguments: {error}. Bind them first, as in "
            "functools.partial(should_stop_fn, ...)."
        ) from None
    except ValueError:  # some callables written in C do not tell
        pass

    def reason(session: Any, step: int) -> str | None:
        if hasattr(session, "finish_steps"):
            session.finish_steps()
        return f"{describe(should_stop_fn)} said so" if should_stop_fn() else None

    return _EarlyStoppingHook(reason, _timer(run_every_secs, run_every_steps, clock), None)


def stop_if_higher_hook(
    estimator: Any,
    metric_name: str,
    threshold: float,
    eval_dir: str | os.PathLike[str] | None = None,
    min_steps: int = 0,
    run_every_secs: float | None = 60,
    run_every_steps: int | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> SessionRunHook:
    """A training hook that ends training once a metric is higher than `threshold`.

    It reads the event files of evaluations, and of these what was written up to the session's global step. So a run that
    was resumed, perhaps from an older checkpoint, decides as one that was never interrupted; and one that was stopped,
    and is started again, makes no further step.

    Args:
      estimator: the one that trains.
      metric_name: the tag: a key of what `evaluate` returns, such as `loss`.
      threshold: compared in float32, which event files hold.
      eval_dir: the directory of the event files; None: `estimator.eval_dir()`. For evaluations with a name pass
        `estimator.eval_dir(name)`.
      min_steps: evaluations at smaller global steps do not count.
      run_every_secs, run_every_steps: how often it looks, as for `make_early_stopping_hook`.
      clock: seconds since some start.

    Raises:
      TypeError: for what is no estimator.
      ValueError: for both or neither of run_every_secs and run_every_steps.
      KeyError: in training, if the evaluations so far do not have that metric.
    """
    crossed = _threshold(metric_name, threshold, operator.gt, "greater than")
    return _metric_hook(estimator, metric_name, crossed, eval_dir, min_steps, run_every_secs, run_every_steps, clock)


def stop_if_lower_hook(
    estimator: Any,
    metric_name: str,
    threshold: float,
    eval_dir: str | os.PathLike[str] | None = None,
    min_steps: int = 0,
    run_every_secs: float | None = 60,
    run_every_steps: int | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> SessionRunHook:
    """A training hook that ends training once a metric is lower than `threshold`. The rest as `stop_if_higher_hook`."""
    crossed = _threshold(metric_name, threshold, operator.lt, "less than")
    return _metric_hook(estimator, metric_name, crossed, eval_dir, min_steps, run_every_secs, run_every_steps, clock)


def stop_if_no_increase_hook(
    estimator: Any,
    metric_name: str,
    max_steps_without_increase: int,
    eval_dir: str | os.PathLike[str] | None = None,
    min_steps: int = 0,
    run_every_secs: float | None = 60,
    run_every_steps: int | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> SessionRunHook:
    """A training hook that ends training once a metric has not increased for so many global steps.

    Args:
      max_steps_without_increase: it stops once an evaluation is that many steps, or more, after the one with the
        highest value so far.

    The rest as `stop_if_higher_hook`.
    """
    stuck = _no_improvement(metric_name, max_steps_without_increase, operator.gt, "increase")
    return _metric_hook(estimator, metric_name, stuck, eval_dir, min_steps, run_every_secs, run_every_steps, clock)


def stop_if_no_decrease_hook(
    estimator: Any,
    metric_name: str,
    max_steps_without_decrease: int,
    eval_dir: str | os.PathLike[str] | None = None,
    min_steps: int = 0,
    run_every_secs: float | None = 60,
    run_every_steps: int | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> SessionRunHook:
    """A training hook that ends training once a metric has not decreased for so many global steps.

    Args:
      max_steps_without_decrease: it stops once an evaluation is that many steps, or more, after the one with the
        lowest value so far.

    The rest as `stop_if_higher_hook`.
    """
    stuck = _no_improvement(metric_name, max_steps_without_decrease, operator.lt, "decrease")
    return _metric_hook(estimator, metric_name, stuck, eval_dir, min_steps, run_every_secs, run_every_steps, clock)


def read_eval_metrics(eval_dir: str | os.PathLike[str]) -> dict[int, dict[str, float]]:
    """The metrics in the event files of a directory: `{global step: {tag: value}}`, ascending; {} without any."""
    return read_scalars(eval_dir)


class _EarlyStoppingHook(SessionRunHook):
    """Asks a function for a reason to stop.

    Args:
      reason: `(session, global step) -> str`, or None to go on.
      timer: when to ask.
      reason_at: whether there was a reason at an earlier global step can be told: `global step -> str`, or None to go
        on. Without such a function nothing is asked at the start of a session.
    """

    after_host_calls = False

    def __init__(
        self,
        reason: Callable[[Any, int], str | None],
        timer: "_AlignedTimer",
        reason_at: Callable[[int], str | None] | None,
    ) -> None:
        self._reason, self._timer, self._reason_at = reason, timer, reason_at

    def after_create_session(self, session: Any, coord: Any) -> None:
        self._timer.start(session.global_step)
        self._at_start = True

    def before_run(self, run_context: SessionRunContext) -> None:
        if not self._at_start:
            return
        self._at_start = False
        # What a run that has stopped here would have been told when it was last asked.
        step = self._timer.last_due(run_context.first_step)
        reason = self._reason_at(step) if self._reason_at is not None and step > 0 else None
        if reason is not None:
            _log_stop(run_context.first_step, reason)
            raise StopIteration

    def next_step(self, global_step: int) -> int | None:
        return self._timer.next_due(global_step)

    def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        step = run_context.session.global_step
        if not self._timer.should_trigger_for_step(step):
            return
        self._timer.update_last_triggered_step(step)
        reason = self._reason(run_context.session, step)
        if reason is not None:
            _log_stop(step, reason)
            run_context.request_stop()


class _AlignedTimer(LoopTimer):
    """A loop timer whose due steps are 1, 1 + every_steps, ... of the whole run, wherever a session begins."""

    def start(self, step: int) -> None:
        every = self._every_steps or 1
        super().start(-(-step // every) * every)

    def next_due(self, step: int) -> int | None:
        """The first due step after `step`; None for a timer of seconds."""
        return None if self._every_steps is None else self.last_due(step + self._every_steps)

    def last_due(self, step: int) -> int:
        """The last due step up to `step`, for a timer of seconds `step` itself; at most 0 if there is none."""
        return step - (step - 1) % (self._every_steps or 1) if step > 0 else 0


def _log_stop(step: int, reason: str) -> None:
    _logger.info("Requesting early stopping at global step %d: %s.", step, reason)


def _check_estimator(estimator: Any) -> None:
    # By what it can do: the hooks do not know the estimator's class.
    if isinstance(estimator, type) or not callable(getattr(estimator, "eval_dir", None)):
        raise TypeError(f"`estimator` must have type `jaxspec.TPUEstimator`. Got: {type(estimator)}")


def _timer(every_secs: float | None, every_steps: int | None, clock: Callable[[], float]) -> _AlignedTimer:
    if every_secs is not None and every_steps is not None:
        raise ValueError(
            f"Only one of `run_every_secs` and `run_every_steps` must be set. Got {every_secs!r} seconds and {every_steps!r} "
            "steps; to count steps, pass run_every_secs=None."
        )
    if every_steps is not None and every_steps <= 0:
        raise ValueError(f"run_every_steps must be positive, got {every_steps!r}; 1 looks after every loop.")
    return _AlignedTimer(every_secs, every_steps, clock=clock)


_Evaluations = Mapping[int, float]
"""A metric by the global step of its evaluation, ascending."""


def _metric_hook(
    estimator: Any,
    metric_name: str,
    decide: Callable[[_Evaluations], str | None],
    eval_dir: str | os.PathLike[str] | None,
    min_steps: int,
    run_every_secs: float | None,
    run_every_steps: int | None,
    clock: Callable[[], float],
) -> SessionRunHook:
    _check_estimator(estimator)
    timer = _timer(run_every_secs, run_every_steps, clock)
    directory = os.fspath(estimator.eval_dir() if eval_dir is None else eval_dir)
    told: set[str] = set()  # a damaged file is read again and again, and told of once

    def reason(step: int) -> str | None:
        evaluations = read_scalars(directory, told)
        counted = {at: metrics for at, metrics in evaluations.items() if min_steps <= at <= step}
        values = {at: metrics[metric_name] for at, metrics in counted.items() if metric_name in metrics}
        if counted and not values:
            names = sorted(set().union(*counted.values()))
            raise KeyError(
                f"early stopping: the evaluations in {directory} have no metric {metric_name!r}; they have {names}. Pass one "
                "of these as metric_name, or the eval_dir of the evaluations that have it."
            )
        return decide(values)

    return _EarlyStoppingHook(lambda session, step: reason(step), timer, reason)


def _threshold(
    metric_name: str, threshold: float, is_beyond: Callable[[Any, Any], bool], relation: str
) -> Callable[[_Evaluations], str | None]:
    def decide(values: _Evaluations) -> str | None:
        for step, value in values.items():
            if is_beyond(_float32(value), _float32(threshold)):
                return (
                    f'at step {step}, metric "{metric_name}" has value {value:g}, which is {relation} the configured threshold '
                    f"({threshold})"
                )
        return None

    return decide


def _no_improvement(
    metric_name: str, max_steps: int, is_better: Callable[[Any, Any], bool], change: str
) -> Callable[[_Evaluations], str | None]:
    check_number(f"max_steps_without_{change}", max_steps, above=0, whole=True)

    def decide(values: _Evaluations) -> str | None:
        best: np.float32 | None = None
        best_step = 0
        for step, value in values.items():
            if best is None or is_better(_float32(value), best):
                best, best_step = _float32(value), step
            if step - best_step >= max_steps:
                return f'no {change} in metric "{metric_name}" for {step - best_step} steps, from step {best_step} to {step}'
        return None

    return decide


def _float32(value: float) -> np.float32:
    with np.errstate(over="ignore"):
        return np.float32(value)
