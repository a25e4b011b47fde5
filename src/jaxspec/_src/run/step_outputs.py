"""The outputs of one step by fetch name."""

import functools
from collections.abc import Callable

import jax
import numpy as np

from jaxspec._src.base.types import Array
from jaxspec._src.spec.fetch_names import named_outputs
from jaxspec._src.spec.tpu_estimator_spec import TPUEstimatorSpec


class StepOutputs:
    """One step's outputs, read when they are asked for, each once.

    Args:
      spec: whose leaves are read.
      shard: the spec of one shard, with shapes for leaves. It shows which outputs are scalars.
      read: makes a leaf of `spec` the host array of the whole batch; a scalar of each shard is `[shards]` there.
    """

    def __init__(self, spec: TPUEstimatorSpec, shard: TPUEstimatorSpec, read: Callable[[Array], np.ndarray]) -> None:
        self._spec, self._shard, self._read = spec, shard, read
        self._values: dict[str, np.ndarray] = {}

    # Made on demand: every dispatch has outputs, and most of them are never asked for.

    @functools.cached_property
    def _leaves(self) -> dict[str, Array]:
        return named_outputs(self._spec)

    @functools.cached_property
    def _scalars(self) -> set[str]:
        return {name for name, leaf in named_outputs(self._shard).items() if leaf.shape == ()}

    def names(self) -> list[str]:
        """The fetch names."""
        return sorted(self._leaves)

    def fetch(self, name: str) -> np.ndarray:
        """One of them, of the whole batch, on the host; a scalar of each shard as its average."""
        if name not in self._values:
            value = self._read(self._leaves[name])
            self._values[name] = _average(value) if name in self._scalars else value
        return self._values[name]

    def gather(self) -> TPUEstimatorSpec:
        """All of them: the host spec of the whole batch."""
        spec: TPUEstimatorSpec = jax.tree.map(self._read, self._spec)
        return spec


def _average(values: np.ndarray) -> np.ndarray:
    if np.issubdtype(values.dtype, np.inexact):
        return np.asarray(values.mean(), values.dtype)
    # Counts and flags are the same on all shards, as a rule, and stay what they are.
    first = values.reshape(-1)[0]
    return np.asarray(first if (values == first).all() else values.mean())
