"""The entries of a map of names: for each array the name that it gets elsewhere, or several and what converts it."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np

Converter: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""From one array to another, both on the host."""
Target: TypeAlias = str | Mapping[str, Converter]
"""A name; in an assignment map also a scope, which ends with a slash; or several names with the converter for each."""


def are_converters(target: object) -> bool:
    """Whether an entry has converters by name, one or more."""
    if not isinstance(target, Mapping) or not target:
        return False
    return all(isinstance(name, str) and callable(convert) for name, convert in target.items())
