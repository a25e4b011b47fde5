"""What every run shows to hooks and listeners: the values of fetch names."""

from collections.abc import Mapping
from typing import overload

import jax
import numpy as np

from jaxspec._src.base.types import Array, PyTree
from jaxspec._src.hooks.session import Fetches
from jaxspec._src.run.step_outputs import StepOutputs
from jaxspec._src.spec.tpu_estimator_spec import TPUEstimatorSpec


class RunningSession:
    """The part of `hooks.Session` that is the same in every mode. A run derives from it, and is the session of its hooks.

    Args:
      fetch_names: of the outputs of a step.
    """

    def __init__(self, fetch_names: list[str]) -> None:
        self._fetch_names = fetch_names

    @property
    def _outputs(self) -> StepOutputs | None:
        """Those of the last step; None before the first."""
        raise NotImplementedError

    @property
    def global_step(self) -> int:
        raise NotImplementedError

    def _arrays(self) -> Mapping[str, Array]:
        """The arrays of the state by name, on the first device."""
        raise NotImplementedError

    @property
    def loss(self) -> float | None:
        outputs = self._outputs
        return float(outputs.fetch("loss")) if outputs is not None and "loss" in outputs.names() else None

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
                    f"a fetch is the name of a tensor, got {name!r} ({type(name).__name__}). The names here are {self._fetch_names}."
                )
            if name not in self._fetch_names and name not in self._arrays():
                raise ValueError(
                    f"unknown fetch {name!r}. The names here are {self._fetch_names}, and those of variables, as "
                    "get_variable_names() gives them. Put a tensor under a name of its own: "
                    "host_call=(fn, {'name': tensor})."
                )

    def _value(self, name: str) -> np.ndarray:
        if name == "global_step":
            return np.asarray(self.global_step)
        if name not in self._fetch_names:
            return np.array(jax.device_get(self._arrays()[name]))
        if self._outputs is None:
            raise ValueError(f"fetch {name!r}: there is no step yet. Ask in before_run, or from after_run on.")
        return self._outputs.fetch(name)
