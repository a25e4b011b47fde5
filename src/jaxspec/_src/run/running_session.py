"""The session that hooks get, in every mode: looks up the outputs of a step by name (`loss`, `predictions/x`)."""

import functools
from collections.abc import Callable
from typing import overload

import jax
import numpy as np

from jaxspec._src.base.activities import doing
from jaxspec._src.base.types import Array, PyTree
from jaxspec._src.checkpoint.named_arrays import state_arrays
from jaxspec._src.device.shards import first_shard
from jaxspec._src.hooks.session import Fetches
from jaxspec._src.spec.fetch_names import named_outputs
from jaxspec._src.spec.mode import ModeKeys
from jaxspec._src.spec.tpu_estimator_spec import TPUEstimatorSpec
from jaxspec._src.step.state import TrainState


class RunningSession:
    """The part of `hooks.Session` that is the same in every mode. A run derives from it, and is the session of its
    hooks.

    Args:
      shard: the spec of one shard as it leaves the device, with shapes for leaves.
    """

    def __init__(self, shard: TPUEstimatorSpec) -> None:
        outputs = named_outputs(shard)
        self._fetch_names = sorted([*outputs, "global_step"])
        self._scalars = {name for name, leaf in outputs.items() if leaf.shape == ()}
        self._outputs: StepOutputs | None = None
        self._naming = (
            "Give a tensor a name: predictions={'name': tensor}."
            if shard.mode == ModeKeys.PREDICT
            else "Give a tensor a name: host_call=jaxspec.fetches(name=tensor)."
        )

    def _step_done(self, spec: TPUEstimatorSpec, read: Callable[[Array], np.ndarray]) -> None:
        """From now on, the outputs are those of another step: `StepOutputs` says what the arguments are."""
        self._outputs = StepOutputs(spec, self._scalars, read)

    @property
    def global_step(self) -> int:
        raise NotImplementedError

    def _current_state(self) -> TrainState:
        """The state now, on the devices, to be read at once."""
        raise NotImplementedError

    @property
    def flops_per_step(self) -> float | None:
        return None

    @property
    def peak_flops_per_sec(self) -> float | None:
        return None

    @property
    def loss(self) -> float | None:
        return None if self._outputs is None or "loss" not in self._fetch_names else float(self._outputs.fetch("loss"))

    @property
    def spec(self) -> TPUEstimatorSpec | None:
        return None if self._outputs is None else self._outputs.gather()

    @overload
    def run(self, fetches: str) -> np.ndarray: ...
    @overload
    def run(self, fetches: Fetches) -> PyTree: ...
    def run(self, fetches: Fetches) -> PyTree:
        self.check_fetches(fetches)
        return jax.tree.map(self._value, fetches)

    def has(self, fetches: Fetches) -> bool:
        return self._outputs is not None or all(
            name == "global_step" or name not in self._fetch_names for name in jax.tree.leaves(fetches)
        )

    def check_fetches(self, fetches: Fetches) -> None:
        for name in jax.tree.leaves(fetches):
            if not isinstance(name, str):
                raise TypeError(
                    f"a fetch is the name of a tensor, got {name!r} ({type(name).__name__}). The names here are "
                    f"{self._fetch_names}."
                )
            if name not in self._fetch_names and name not in state_arrays(self._current_state()):
                raise ValueError(
                    f"unknown fetch {name!r}. The names here are {self._fetch_names}, and those of variables, as "
                    f"get_variable_names() gives them. {self._naming}"
                )

    def _value(self, name: str) -> np.ndarray:
        if name == "global_step":
            return np.asarray(self.global_step)
        if name not in self._fetch_names:
            with doing("the devices"):
                return np.array(jax.device_get(first_shard(state_arrays(self._current_state())[name])))
        if self._outputs is None:
            raise ValueError(f"fetch {name!r}: there is no step yet. Ask in before_run, or from after_run on.")
        return self._outputs.fetch(name)


class StepOutputs:
    """One step's outputs by fetch name, read when they are asked for, each once.

    Args:
      spec: whose leaves are read.
      scalars: the names of outputs that are a scalar on each shard.
      read: makes a leaf of `spec` the host array of the whole batch; a scalar of each shard is `[shards]` there.
    """

    def __init__(self, spec: TPUEstimatorSpec, scalars: set[str], read: Callable[[Array], np.ndarray]) -> None:
        self._spec, self._scalars, self._read = spec, scalars, read
        self._values: dict[str, np.ndarray] = {}

    # Made on demand: every dispatch has outputs, and most of them are never asked for.
    @functools.cached_property
    def _leaves(self) -> dict[str, Array]:
        return named_outputs(self._spec)

    def fetch(self, name: str) -> np.ndarray:
        """One of them, of the whole batch, on the host; a scalar of each shard as its average."""
        if name not in self._values:
            with doing("the devices"):
                value = self._read(self._leaves[name])
            self._values[name] = _average(value) if name in self._scalars else value
        return self._values[name]

    def gather(self) -> TPUEstimatorSpec:
        """All of them: the host spec of the whole batch."""
        with doing("the devices"):
            spec: TPUEstimatorSpec = jax.tree.map(self._read, self._spec)
        return spec


def _average(values: np.ndarray) -> np.ndarray:
    if np.issubdtype(values.dtype, np.inexact):
        return np.asarray(values.mean(), values.dtype)
    # Counts and flags are the same on all shards, as a rule, and stay what they are.
    first = values.reshape(-1)[0]
    return np.asarray(first if (values == first).all() else values.mean())
