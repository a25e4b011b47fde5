"""The session of a run: what hooks and listeners see of it."""

from collections.abc import Mapping
from typing import Protocol, overload

import jax
import numpy as np

from jaxspec._src.base.types import Array, PyTree
from jaxspec._src.hooks.session import Fetches
from jaxspec._src.run.step_outputs import StepOutputs
from jaxspec._src.spec.tpu_estimator_spec import TPUEstimatorSpec
from jaxspec._src.step.state import TrainState
from jaxspec._src.summary.writer import SummaryWriter


class RunView(Protocol):
    """What a session asks its run for."""

    first_step: int
    """The `first_step` of the first loop."""
    fetch_names: list[str]
    """Of the outputs of a step."""

    @property
    def summary_writer(self) -> SummaryWriter | None:
        """The writer of the run's own event files; None in prediction."""

    @property
    def global_step(self) -> int:
        """The number of updates made so far; in evaluation and prediction, those behind the state."""

    @property
    def interrupted(self) -> bool:
        """Whether a signal ends the run."""

    @property
    def outputs(self) -> StepOutputs | None:
        """Those of the last step; None before the first."""

    def lend_state(self) -> TrainState | None:
        """The state, which the caller may hold for as long as it likes."""

    def arrays(self) -> Mapping[str, Array]:
        """The arrays of the state by name, on the first device."""


class TrainingView(RunView, Protocol):
    """What the session of a training asks its run for."""

    def finish_steps(self) -> None:
        """Waits until every step so far is done."""

    def save(self, checkpoint_dir: str) -> None:
        """Starts to write a checkpoint."""

    def finish_save(self, checkpoint_dir: str) -> None:
        """Waits until the last checkpoint is whole on disk."""


class RunningSession:
    """The session of an evaluation or prediction; see `hooks.Session`."""

    def __init__(self, run: RunView) -> None:
        self._view = run

    @property
    def summary_writer(self) -> SummaryWriter | None:
        return self._view.summary_writer

    @property
    def first_step(self) -> int:
        return self._view.first_step

    @property
    def interrupted(self) -> bool:
        return self._view.interrupted

    @property
    def global_step(self) -> int:
        return self._view.global_step

    @property
    def state(self) -> TrainState | None:
        return self._view.lend_state()

    @property
    def loss(self) -> float | None:
        outputs = self._view.outputs
        return float(outputs.fetch("loss")) if outputs is not None and "loss" in outputs.names() else None

    @property
    def spec(self) -> TPUEstimatorSpec | None:
        outputs = self._view.outputs
        return None if outputs is None else outputs.gather()

    @overload
    def run(self, fetches: str) -> np.ndarray: ...
    @overload
    def run(self, fetches: Fetches) -> PyTree: ...
    def run(self, fetches: Fetches) -> PyTree:
        self.check_fetches(fetches)
        return jax.tree.map(self._value, fetches)

    def has(self, fetches: Fetches) -> bool:
        return self._view.outputs is not None or all(
            name == "global_step" or name not in self._view.fetch_names for name in jax.tree.leaves(fetches)
        )

    def check_fetches(self, fetches: Fetches) -> None:
        names = self._view.fetch_names
        for name in jax.tree.leaves(fetches):
            if not isinstance(name, str):
                raise TypeError(
                    f"a fetch is the name of a tensor, got {name!r} ({type(name).__name__}). The names here are {names}."
                )
            if name not in names and name not in self._view.arrays():
                raise ValueError(
                    f"unknown fetch {name!r}. The names here are {names}, and those of variables, as "
                    "get_variable_names() gives them. Put a tensor under a name of its own: "
                    "host_call=(fn, {'name': tensor})."
                )

    def _value(self, name: str) -> np.ndarray:
        if name == "global_step":
            return np.asarray(self.global_step)
        if name not in self._view.fetch_names:
            return np.array(jax.device_get(self._view.arrays()[name]))
        outputs = self._view.outputs
        if outputs is None:
            raise ValueError(f"fetch {name!r}: there is no step yet. Ask in before_run, or from after_run on.")
        return outputs.fetch(name)


class RunningTraining(RunningSession):
    """The session of a training; see `hooks.TrainingSession`."""

    def __init__(self, run: TrainingView) -> None:
        super().__init__(run)
        self._training = run

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        self._training.save(checkpoint_dir)

    def finish_checkpoint(self, checkpoint_dir: str) -> None:
        self._training.finish_save(checkpoint_dir)

    def finish_steps(self) -> None:
        self._training.finish_steps()
