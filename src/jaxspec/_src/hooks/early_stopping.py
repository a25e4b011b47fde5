"""Early stopping: makes the hooks that end training by what the evaluations so far have found."""

import inspect
import operator
import os
import time
from collections.abc import Callable

from jaxspec._src.base.callables import describe
from jaxspec._src.base.types import Clock
from jaxspec._src.base.validate import check_callable
from jaxspec._src.hooks.early_stopping_hook import (
    AlignedTimer,
    EarlyStoppingHook,
    EvaluatedMetric,
    HasEvalDir,
    check_estimator,
)
from jaxspec._src.hooks.session import Session
from jaxspec._src.spec.hook import SessionRunHook
from jaxspec._src.summary.event_reader import read_scalars


def make_early_stopping_hook(
    estimator: HasEvalDir,
    should_stop_fn: Callable[[], bool],
    run_every_secs: float | None = 60,
    run_every_steps: int | None = None,
    *,
    clock: Clock = time.monotonic,
) -> SessionRunHook:
    """A training hook that ends training once `should_stop_fn` returns True.

    Args:
      estimator: the one that trains.
      should_stop_fn: a function without arguments. When it is called, every step so far is done and host_call has run
        for it.
      run_every_secs, run_every_steps: how often it is called. Exactly one; for steps pass `run_every_secs=None`. With
        steps it is called after the global steps 1, 1 + run_every_steps, ..., also in a run that was resumed; loops end
        there, so a small number makes short loops.
      clock: seconds since some start.

    Raises:
      TypeError: if `estimator` is not an estimator, or `should_stop_fn` is not a function without arguments.
      ValueError: for both or neither of run_every_secs and run_every_steps.
    """
    check_estimator(estimator)
    instead = "Write a function without arguments that returns whether to stop."
    check_callable("should_stop_fn", should_stop_fn, instead)
    try:
        inspect.signature(should_stop_fn).bind()
    except TypeError as error:
        raise TypeError(
            f"`should_stop_fn` ({describe(should_stop_fn)}) is called without arguments: {error}. Bind them first, as "
            "in functools.partial(should_stop_fn, ...)."
        ) from None
    except ValueError:  # some callables written in C have no signature
        pass

    def reason(session: Session, step: int) -> str | None:
        if hasattr(session, "finish_steps"):
            session.finish_steps()
        return f"{describe(should_stop_fn)} said so" if should_stop_fn() else None

    return EarlyStoppingHook(reason, AlignedTimer(run_every_secs, run_every_steps, clock), is_of_past=False)


def stop_if_higher_hook(
    estimator: HasEvalDir,
    metric_name: str,
    threshold: float,
    eval_dir: str | os.PathLike[str] | None = None,
    min_steps: int = 0,
    run_every_secs: float | None = 60,
    run_every_steps: int | None = None,
    *,
    clock: Clock = time.monotonic,
) -> SessionRunHook:
    """A training hook that ends training once a metric is higher than `threshold`.

    It reads the event files of the evaluations up to the session's global step. So a run that was resumed, perhaps from
    an older checkpoint, decides as a run that was never interrupted; and a run that was stopped, and is started again,
    makes no further step.

    Args:
      estimator: the one that trains.
      metric_name: the tag: a key of what `evaluate` returns, such as `loss`.
      threshold: compared in float32, which event files hold.
      eval_dir: the directory of the event files; None: `estimator.eval_dir()`. For evaluations with a name pass
        `estimator.eval_dir(name)`.
      min_steps: evaluations at smaller global steps do not count.
      run_every_secs, run_every_steps: how often it reads them, as for `make_early_stopping_hook`.
      clock: seconds since some start.

    Raises:
      TypeError: if `estimator` is not an estimator.
      ValueError: for both or neither of run_every_secs and run_every_steps.
      KeyError: in training, if the evaluations so far do not have that metric.
    """
    metric = EvaluatedMetric(estimator, metric_name, eval_dir, min_steps)
    reason = metric.beyond(threshold, operator.gt, "greater than")
    return EarlyStoppingHook(reason, AlignedTimer(run_every_secs, run_every_steps, clock))


def stop_if_lower_hook(
    estimator: HasEvalDir,
    metric_name: str,
    threshold: float,
    eval_dir: str | os.PathLike[str] | None = None,
    min_steps: int = 0,
    run_every_secs: float | None = 60,
    run_every_steps: int | None = None,
    *,
    clock: Clock = time.monotonic,
) -> SessionRunHook:
    """A training hook that ends training once a metric is lower than `threshold`. The other arguments are those of
    `stop_if_higher_hook`."""
    metric = EvaluatedMetric(estimator, metric_name, eval_dir, min_steps)
    reason = metric.beyond(threshold, operator.lt, "less than")
    return EarlyStoppingHook(reason, AlignedTimer(run_every_secs, run_every_steps, clock))


def stop_if_no_increase_hook(
    estimator: HasEvalDir,
    metric_name: str,
    max_steps_without_increase: int,
    eval_dir: str | os.PathLike[str] | None = None,
    min_steps: int = 0,
    run_every_secs: float | None = 60,
    run_every_steps: int | None = None,
    *,
    clock: Clock = time.monotonic,
) -> SessionRunHook:
    """A training hook that ends training once a metric has not increased for so many global steps.

    Args:
      max_steps_without_increase: training ends once an evaluation is that many steps, or more, after the one with the
        highest value so far.

    The other arguments are those of `stop_if_higher_hook`.
    """
    metric = EvaluatedMetric(estimator, metric_name, eval_dir, min_steps)
    reason = metric.not_improved(max_steps_without_increase, operator.gt, "increase")
    return EarlyStoppingHook(reason, AlignedTimer(run_every_secs, run_every_steps, clock))


def stop_if_no_decrease_hook(
    estimator: HasEvalDir,
    metric_name: str,
    max_steps_without_decrease: int,
    eval_dir: str | os.PathLike[str] | None = None,
    min_steps: int = 0,
    run_every_secs: float | None = 60,
    run_every_steps: int | None = None,
    *,
    clock: Clock = time.monotonic,
) -> SessionRunHook:
    """A training hook that ends training once a metric has not decreased for so many global steps.

    Args:
      max_steps_without_decrease: training ends once an evaluation is that many steps, or more, after the one with the
        lowest value so far.

    The other arguments are those of `stop_if_higher_hook`.
    """
    metric = EvaluatedMetric(estimator, metric_name, eval_dir, min_steps)
    reason = metric.not_improved(max_steps_without_decrease, operator.lt, "decrease")
    return EarlyStoppingHook(reason, AlignedTimer(run_every_secs, run_every_steps, clock))


def read_eval_metrics(eval_dir: str | os.PathLike[str]) -> dict[int, dict[str, float]]:
    """The metrics in the event files of a directory: `{global step: {tag: value}}`, ascending; {} without any."""
    return read_scalars(eval_dir)
