"""The metrics of evaluations, read back from their event files."""

import os
from collections.abc import Mapping
from typing import TypeAlias

from jaxspec._src.summary.event_reader import read_scalars

ValueByStep: TypeAlias = Mapping[int, float]
"""One metric by the global step of its evaluation, ascending."""


def read_eval_metrics(eval_dir: str | os.PathLike[str]) -> dict[int, dict[str, float]]:
    """The metrics in the event files of a directory: `{global step: {tag: value}}`, ascending; {} without any."""
    return read_scalars(eval_dir)


class MetricReader:
    """Reads one metric of the evaluations in a directory.

    Args:
      metric_name: the tag.
      eval_dir: the directory of the event files.
      min_steps: evaluations at smaller global steps are left out.
    """

    def __init__(self, metric_name: str, eval_dir: str, min_steps: int) -> None:
        self._name, self._eval_dir, self._min_steps = metric_name, eval_dir, min_steps
        self._warned: set[str] = set()  # a damaged file is read many times; there is one warning

    def up_to(self, step: int) -> ValueByStep:
        """The values of the evaluations at the global step `step` and before.

        Raises:
          KeyError: if there are evaluations, and none of them has the metric.
        """
        evaluations = read_scalars(self._eval_dir, self._warned)
        counted = {at: metrics for at, metrics in evaluations.items() if self._min_steps <= at <= step}
        values = {at: metrics[self._name] for at, metrics in counted.items() if self._name in metrics}
        if counted and not values:
            names = sorted(set().union(*counted.values()))
            raise KeyError(
                f"early stopping: the evaluations in {self._eval_dir} have no metric {self._name!r}; they have {names}. Pass one "
                "of these as metric_name, or the eval_dir of the evaluations that have it."
            )
        return values
