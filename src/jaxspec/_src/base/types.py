"""Type aliases (PyTree, Batch, Variables, ...). `Any` is written here, and hardly anywhere else."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias, TypeVar

import jax
import numpy as np

PyTree: TypeAlias = Any
"""A tree of containers that JAX knows. Its leaves are arrays, unless a docstring says otherwise."""
Array: TypeAlias = jax.Array | np.ndarray
"""An array of JAX (traced or concrete) or of NumPy."""
DType: TypeAlias = Any
"""A dtype as JAX takes it: of NumPy, a scalar type such as `jnp.bfloat16`, or one of JAX's own, as that of keys."""
Variables: TypeAlias = Mapping[str, PyTree]
"""Collections by name: `{"params": what is trained, ...}`."""
Batch: TypeAlias = PyTree
"""Features, or labels: a tree of arrays `[rows, ...]`."""
HyperParameters: TypeAlias = Any
"""The user's `params`: a dict, a ConfigDict, a namespace, a dataclass or another object."""
Metrics: TypeAlias = dict[str, Any]
"""Results by name. Each is what the metric's `compute` returns: a float, an array, or a value of the user's own."""

AnyFunction: TypeAlias = Callable[..., Any]
"""A function whose arguments are known by name only."""
PositionAt: TypeAlias = Callable[[], str | None]
"""Gives the position of the input after a batch, as text, when it is needed. It keeps no batch and no input alive."""
InputFn: TypeAlias = AnyFunction
"""Called by keyword with those of `params`, `mode`, `config` that it names; returns an iterable of batches."""
HostFunction: TypeAlias = tuple[AnyFunction, list[PyTree] | tuple[PyTree, ...] | dict[str, PyTree]]
"""`(fn, tensors)`: list tensors are passed by position, dict tensors by keyword."""

T = TypeVar("T")


class Clock(Protocol):
    """Seconds since some start."""

    def __call__(self) -> float: ...
