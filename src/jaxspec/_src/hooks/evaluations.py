"""The metrics of evaluations, read back from their event files, and what in them is a reason to stop."""

import os
from collections.abc import Callable, Iterator
from typing import Protocol, TypeAlias

import numpy as np

from jaxspec._src.base.validate import check_number
from jaxspec._src.hooks.stopping_hook import Reason
from jaxspec._src.summary.event_reader import read_scalars

Comparison: TypeAlias = Callable[[np.float32, np.float32], bool]


class HasEvalDir(Protocol):
    """The part of an estimator that early stopping uses."""

    def eval_dir(self, name: str | None = None) -> str:
        """The directory of the event files of evaluations."""


def check_estimator(estimator: object) -> None:
    """Raises TypeError unless it has an `eval_dir`: the hooks do not know the class of the estimator."""
    if isinstance(estimator, type) or not callable(getattr(estimator, "eval_dir", None)):
        raise TypeError(f"`estimator` must have type `jaxspec.TPUEstimator`. Got: {type(estimator)}")


def read_eval_metrics(eval_dir: str | os.PathLike[str]) -> dict[int, dict[str, float]]:
    """The metrics in the event files of a directory: `{global step: {tag: value}}`, ascending; {} without any."""
    return read_scalars(eval_dir)


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
        self._eval_dir = os.fspath(estimator.eval_dir() if eval_dir is None else eval_dir)
        self._warned: set[str] = set()  # a damaged file is read many times; there is one warning

    def beyond(self, threshold: float, is_beyond: Comparison, relation: str) -> Reason:
        """The reason to stop once a value is beyond the threshold."""

        def reason(session: object, last: int) -> str | None:
            for step, value in self._up_to(last):
                if is_beyond(value, _float32(threshold)):
                    return (
                        f'at step {step}, metric "{self._name}" has value {value:g}, which is {relation} the configured '
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
                    return f'no {change} in metric "{self._name}" for {step - best_step} steps, from step {best_step} to {step}'
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
