"""Session: what hooks and listeners see of a run, and ask of it by fetch names."""

from collections.abc import Iterable, Mapping
from typing import Protocol, TypeAlias, overload

import jax
import numpy as np

from jaxspec._src.base.arrays import describe_array, is_array
from jaxspec._src.base.types import PyTree
from jaxspec._src.spec.tpu_estimator_spec import TPUEstimatorSpec
from jaxspec._src.step.state import TrainState
from jaxspec._src.summary.writer import SummaryWriter

Fetches: TypeAlias = PyTree
"""A fetch name (a str), or a list, tuple or dict of them, in any nesting."""


class Session(Protocol):
    """A running session. A value is copied from the devices only when it is asked for; asking waits for the devices.

    Fetch names are `loss`, `global_step`, `predictions/KEY` (or `predictions`), those that `jaxspec.fetches` gives, the
    keys of the tensors of host_call and eval_metrics where these are dicts, and the names that
    `TPUEstimator.get_variable_names()` returns. Which outputs there are depends on the mode: in training `loss`, the
    fetches and the tensors of host_call.
    """

    @property
    def first_step(self) -> int:
        """The global step at which training began; 0 in evaluation and prediction, whose steps are their batches."""

    @property
    def global_step(self) -> int:
        """The number of updates made so far; in evaluation and prediction, the updates that made the state. Waits for
        nothing."""

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C or SIGTERM ends the session. A hook should then leave out what is not needed."""

    @property
    def summary_writer(self) -> SummaryWriter | None:
        """The writer of the run's own summaries; None in prediction."""

    @property
    def flops_per_step(self) -> float | None:
        """The floating point operations of one step on all devices together, in matrix products and convolutions. Known
        in training, after the first loop; None otherwise, and for a model without any."""

    @property
    def peak_flops_per_sec(self) -> float | None:
        """What all devices could do together in a second, in bfloat16; None where it is not known, as of CPUs."""

    @property
    def state(self) -> TrainState | None:
        """The `TrainState` now, on the devices. It stays valid: training continues with a copy."""

    @property
    def loss(self) -> float | None:
        """The loss of the last step, averaged over shards; None before the first step, and in prediction."""

    @property
    def spec(self) -> TPUEstimatorSpec | None:
        """The `TPUEstimatorSpec` of the last step, of the whole batch, on the host; None before the first step."""

    @overload
    def run(self, fetches: str) -> np.ndarray: ...
    @overload
    def run(self, fetches: Fetches) -> PyTree: ...
    def run(self, fetches: Fetches) -> PyTree:
        """The values of fetch names, as NumPy arrays in the structure of `fetches`.

        An output is that of the last step, of the whole batch; a scalar output is averaged over shards.

        Raises:
          ValueError: before the first step, for an output; and as `check_fetches`.
          TypeError: as `check_fetches`.
        """

    def has(self, fetches: Fetches) -> bool:
        """Whether all these fetch names have a value now: outputs have none before the first step."""

    def check_fetches(self, fetches: Fetches) -> None:
        """Checks that all fetch names are known.

        Raises:
          TypeError: for a leaf that is not a str.
          ValueError: for an unknown name.
        """


class TrainingSession(Session, Protocol):
    """The session of a training: it also saves checkpoints."""

    def clock(self) -> float:
        """Seconds since some start. All processes of a run read the same between two steps, so that they decide alike
        on what depends on the time."""

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Starts to write a checkpoint of this step, unless there is one. First, the losses of all steps are checked.

        Raises:
          NanLossDuringTrainingError: for a NaN loss, or a weight that is not finite; nothing is written then.
        """

    def finish_checkpoint(self, checkpoint_dir: str) -> None:
        """Waits until the last checkpoint is complete on disk."""

    def finish_steps(self) -> None:
        """Waits until every step so far is done, and host_call has run for it; raises if a loss was NaN."""


def refuse_arrays(argument: str, fetches: Fetches) -> None:
    """Raises TypeError for an array where a fetch name belongs.

    Args:
      argument: the class and its argument, for the message.
      fetches: what the user passed.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(fetches):
        if is_array(leaf):
            raise TypeError(
                f"{argument}{jax.tree_util.keystr(path)} is an array, {describe_array(leaf)}; hooks ask for tensors by "
                "name: write 'loss', or give the tensor a name with host_call=jaxspec.fetches(name=tensor) and write "
                "'name'."
            )


def by_tag(argument: str, fetches: str | Iterable[str] | Mapping[str, str]) -> dict[str, str]:
    """Fetch names by their tags: one that comes without a tag is its own.

    Args:
      argument: the class and its argument, for the message.
      fetches: what the user passed: a fetch name, a list of them, or a dict from tags to fetch names, which is sorted.
    """
    refuse_arrays(argument, fetches)
    if isinstance(fetches, Mapping):
        return dict(sorted(fetches.items()))
    if isinstance(fetches, str) or not isinstance(fetches, Iterable):
        fetches = [str(fetches)]  # of something else, the session says that it knows no such name
    return {name: name for name in fetches}
