"""Checks of numbers that the user gave."""

from typing import Any

import numpy as np


def check_positive_int(name: str, value: Any) -> None:
    """TypeError or ValueError, in TPUEstimator's words, unless `value` is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be int, got {type(value)}")
    if value <= 0:
        raise ValueError(f"{name} must be positive, got {value}")


def check_number(
    name: str, value: Any, *, minimum: float | None = None, above: float | None = None, whole: bool = False
) -> None:
    """TypeError or ValueError unless `value` is such a number, or None."""
    if value is None:
        return
    kinds = int | np.integer if whole else int | float | np.number
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise TypeError(
            f"{name} should be {'a whole number' if whole else 'a number'}, got {value!r} ({type(value).__name__})"
        )
    if minimum is not None and value < minimum:
        raise ValueError(f"{name} should be >= {minimum}, got {value}")
    if above is not None and value <= above:
        raise ValueError(f"{name} should be > {above}, got {value}")
