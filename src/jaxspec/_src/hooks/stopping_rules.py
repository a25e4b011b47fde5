"""The rules of early stopping: whether the evaluations so far are a reason to stop."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from jaxspec._src.base.validate import check_number
from jaxspec._src.hooks.evaluations import ValueByStep

Rule: TypeAlias = Callable[[ValueByStep], str | None]
"""Returns the reason to stop, or None."""
Comparison: TypeAlias = Callable[[np.float32, np.float32], bool]


def threshold_rule(metric_name: str, threshold: float, is_beyond: Comparison, relation: str) -> Rule:
    """Stops once a value is beyond the threshold. Values are compared in float32, as event files hold them."""

    def rule(values: ValueByStep) -> str | None:
        for step, value in values.items():
            if is_beyond(_float32(value), _float32(threshold)):
                return (
                    f'at step {step}, metric "{metric_name}" has value {value:g}, which is {relation} the configured threshold '
                    f"({threshold})"
                )
        return None

    return rule


def no_improvement_rule(metric_name: str, max_steps: int, is_better: Comparison, change: str) -> Rule:
    """Stops once an evaluation is `max_steps` or more after the best one so far."""
    check_number(f"max_steps_without_{change}", max_steps, above=0, whole=True)

    def rule(values: ValueByStep) -> str | None:
        best: np.float32 | None = None
        best_step = 0
        for step, value in values.items():
            if best is None or is_better(_float32(value), best):
                best, best_step = _float32(value), step
            if step - best_step >= max_steps:
                return f'no {change} in metric "{metric_name}" for {step - best_step} steps, from step {best_step} to {step}'
        return None

    return rule


def _float32(value: float) -> np.float32:
    with np.errstate(over="ignore"):
        return np.float32(value)
