"""The sessions that hooks see, made of the parts of a run."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxspec._src.run.step_outputs import StepOutputs


class RunSession:
    """A running session. Nothing is fetched from the devices but what is asked for, and asking waits for it.

    Fetch names are `loss`, `global_step`, `predictions/KEY` (or `predictions`), the keys of the tensors of host_call and
    eval_metrics where these are dicts, and the names that `TPUEstimator.get_variable_names()` gives. What there is
    depends on the mode: in training `loss` and host_call's tensors.
    """

    def __init__(
        self,
        *,
        global_step: Callable[[], int],
        state: Callable[[], Any],
        arrays: Callable[[], Mapping[str, Any]],
        names: list[str],
        outputs: Callable[[], StepOutputs | None],
        writer: Any,
        first_step: int,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        self._global_step, self._state, self._arrays = global_step, state, arrays
        self._names, self._outputs, self._interrupted = names, outputs, interrupted
        self.summary_writer = writer
        """The `summary.SummaryWriter` of the run's own event files; None in prediction."""
        self.first_step = first_step
        """The `first_step` of the session's first loop: in training its global step, else 0."""

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C or SIGTERM ends the session: what is not needed should be left out."""
        return self._interrupted()

    @property
    def global_step(self) -> int:
        """The number of updates made so far; in evaluation and prediction, those behind the state. Costs nothing."""
        return self._global_step()

    @property
    def state(self) -> Any:
        """The `TrainState` now, on the devices. It stays valid: training goes on with a copy then."""
        return self._state()

    @property
    def loss(self) -> float | None:
        """The loss of the last step, averaged over shards; None before the first, and in prediction."""
        outputs = self._outputs()
        return float(outputs.fetch("loss")) if outputs is not None and "loss" in outputs.names() else None

    @property
    def spec(self) -> Any:
        """The `TPUEstimatorSpec` of the last step, gathered on the host; None before the first."""
        outputs = self._outputs()
        return None if outputs is None else outputs.gather()

    def run(self, fetches: Any) -> Any:
        """The values of fetch names now: of the last step, or of the state. In the structure of `fetches`."""
        self.check_fetches(fetches)
        return jax.tree.map(self._value, fetches)

    def has(self, fetches: Any) -> bool:
        """Whether all these fetch names have a value now: those of outputs have none before the first step."""
        return self._outputs() is not None or all(
            name == "global_step" or name not in self._names for name in jax.tree.leaves(fetches)
        )

    def check_fetches(self, fetches: Any) -> None:
        """Raises unless all fetch names are known: TypeError for what is no name, ValueError for an unknown one."""
        for name in jax.tree.leaves(fetches):
            if not isinstance(name, str):
                raise TypeError(
                    f"a fetch is the name of a tensor, got {name!r} ({type(name).__name__}). The names here are {self._names}."
                )
            if name not in self._names and name not in self._arrays():
                raise ValueError(
                    f"unknown fetch {name!r}. The names here are {self._names}, and those of variables, as "
                    "get_variable_names() gives them. Put a tensor under a name of its own: "
                    "host_call=(fn, {'name': tensor})."
                )

    def _value(self, name: str) -> Any:
        if name == "global_step":
            return np.asarray(self.global_step)
        if name not in self._names:
            return np.array(jax.device_get(self._arrays()[name]))
        outputs = self._outputs()
        if outputs is None:
            raise ValueError(f"fetch {name!r}: there is no step yet. Ask in before_run, or from after_run on.")
        return outputs.fetch(name)


class RunTrainingSession(RunSession):
    """The session that hooks see in training: it can save, too."""

    def __init__(
        self,
        save: Callable[[str], None],
        finish_save: Callable[[str], None],
        finish_steps: Callable[[], None],
        **view: Any,
    ) -> None:
        super().__init__(**view)
        self._save, self._finish_save, self._finish_steps = save, finish_save, finish_steps

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Starts to write a checkpoint of this step, unless there is one. The losses of all steps are looked at before.

        Raises:
          NanLossDuringTrainingError: for a NaN loss, or a weight that is not finite; nothing is written then.
        """
        self._save(checkpoint_dir)

    def finish_checkpoint(self, checkpoint_dir: str) -> None:
        """Waits until the last checkpoint is whole on disk."""
        self._finish_save(checkpoint_dir)

    def finish_steps(self) -> None:
        """Waits until every step so far is done, and host_call has run for it; raises if a loss was NaN."""
        self._finish_steps()
