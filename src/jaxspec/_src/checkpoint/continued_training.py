"""A training state from a TensorFlow 1 checkpoint: variables, the slots of the optimizer, and the global step."""

import itertools
import logging
import os
from collections.abc import Hashable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import KeyPath

from jaxspec._src.base.arrays import describe_array, named_leaves, path_name
from jaxspec._src.base.name_maps import Converter, Target
from jaxspec._src.base.types import PyTree
from jaxspec._src.checkpoint.assignment_map import sources_of
from jaxspec._src.checkpoint.init_from_checkpoint import init_from_checkpoint
from jaxspec._src.checkpoint.tensorflow.reader import CheckpointReader, load_checkpoint
from jaxspec._src.checkpoint.tensorflow.slots import MEAN, MOMENTUM, slots_of
from jaxspec._src.optim.ftrl import FtrlState
from jaxspec._src.step.state import TrainState

_logger = logging.getLogger("jaxspec")

_SLOTS: Mapping[type, Mapping[str, tuple[str, ...]]] = {
    optax.ScaleByAdamState: {"mu": ("Adam", "adam_m"), "nu": ("Adam_1", "adam_v")},
    optax.ScaleByRssState: {"sum_of_squares": ("Adagrad",)},
    optax.ScaleByRmsState: {"nu": ("RMSProp",)},
    optax.ScaleByRStdDevState: {"nu": ("RMSProp",), "mu": (MEAN,)},
    optax.ScaleByAdaDeltaState: {"e_g": ("Adadelta",), "e_x": ("Adadelta_1",)},
    optax.TraceState: {"trace": ("Momentum", f"-{MOMENTUM}")},
    optax.ScaleByScheduleState: {},
    FtrlState: {"accumulators": ("Ftrl",), "linears": ("Ftrl_1",)},
}
"""By the type of a state, for each of its fields but the count of updates, the slots that it may come from: the first
of them that there is. A minus sign changes the sign: optax.rmsprop sums up what is added to the parameters, TensorFlow
what is subtracted from them."""
_SCALE = 2.0**64
"""Slots are so much larger while they are converted. Beside a constant that a converter adds, and that is subtracted
again, the small averages of Adam would lose their digits."""


def from_tensorflow(
    state: TrainState,
    path: str | os.PathLike[str],
    assignment_map: Mapping[str, Target],
    optimizer_names: Mapping[str, str] | None = None,
) -> TrainState:
    """The state of a training that TensorFlow 1 has begun, to be continued.

    Args:
      state: a fresh one of the same model and optimizer, as `create_train_state` returns it.
      path: of the TensorFlow checkpoint, as for `checkpoint.tf.load_checkpoint`.
      assignment_map: as for `init_from_checkpoint`. What it says of a variable is also how its slots are
        converted; a constant that a converter adds is left out there.
      optimizer_names: for optimizers that were given another name than their own: `{"MyAdam": "Adam"}` after
        `AdamOptimizer(rate, name="MyAdam")`.

    Returns:
      The state with the variables that the map names, the slots of the optimizer, and the step of the checkpoint. Its
      `rng` stays. The states of `optim.adam`, `adam_weight_decay` and `ftrl` are filled, and those of `optax.adagrad`,
      `adadelta`, `rmsprop`, `sgd` and `adam`, in chains, too. Every count of updates becomes the global step.

    Raises:
      TypeError: if `state` is no training state.
      ValueError: if the optimizer has a state of another kind; if the checkpoint has no slot, or one of another shape,
        for a parameter that is trained. Otherwise as `init_from_checkpoint`.
    """
    if not isinstance(state, TrainState):
        raise TypeError(f"from_tensorflow: state must be what create_train_state returns, got {type(state).__name__}.")
    reader = load_checkpoint(path)
    variables = init_from_checkpoint(path, assignment_map)(state.variables)
    sources = sources_of(assignment_map, named_leaves(state.variables))
    step = jnp.asarray(reader.read("global_step"), jnp.int32)
    slots = _Slots(reader, sources, step, optimizer_names or {})
    opt_state = jax.tree_util.tree_map_with_path(slots.fill, state.opt_state, is_leaf=lambda node: type(node) in _SLOTS)
    slots.warn_of_those_left()
    return TrainState(step, jax.tree.map(jnp.asarray, variables), opt_state, state.rng)


class _Slots:
    """The slots of a checkpoint, and which of them the state has taken."""

    def __init__(
        self,
        reader: CheckpointReader,
        sources: Mapping[str, tuple[str, Converter | None]],
        step: jax.Array,
        optimizer_names: Mapping[str, str],
    ) -> None:
        self._reader, self._sources, self._step = reader, sources, step
        self._mapped, self._taken = {source for source, _ in sources.values()}, set[str]()
        self._stored = slots_of(reader.names(), self._mapped, optimizer_names)

    def fill(self, path: KeyPath[Hashable], node: PyTree) -> PyTree:
        """A state of one transformation, with stored values."""
        if type(node) not in _SLOTS:
            raise ValueError(
                f"from_tensorflow: opt_state{jax.tree_util.keystr(path)}, {describe_array(node)}, is in none of the "
                f"states that can be filled: {sorted(kind.__name__ for kind in _SLOTS)}. Use the optimizers of "
                "jaxspec.optim, or optax.adagrad, adadelta, rmsprop, sgd, adam; set other states by hand."
            )
        fields = _SLOTS[type(node)]
        filled = {
            field: jax.tree_util.tree_map_with_path(
                lambda path, leaf, slots=slots: self._slot(path_name(path), leaf, slots), getattr(node, field)
            )
            for field, slots in fields.items()
        }
        counts = dict.fromkeys({"count", "step"} & set(node._fields), self._step)
        return node._replace(**filled, **counts)

    def _slot(self, name: str, leaf: jax.Array, slots: tuple[str, ...]) -> jax.Array:
        """The first of the slots that there is for the parameter at the path `name`."""
        if f"params/{name}" not in self._sources:
            raise ValueError(
                f"from_tensorflow: params/{name} is trained, and the assignment map says nothing of it. Give it an "
                "entry: {'NAME IN TENSORFLOW': 'params/" + name + "'}."
            )
        source, convert = self._sources[f"params/{name}"]
        stored = self._stored[source]
        signs = {slot.removeprefix("-"): -1 if slot.startswith("-") else 1 for slot in slots}
        slot = next((slot for slot in signs if slot in stored), None)
        if slot is None:
            expected = " or ".join(f"{source}/{slot}" for slot in signs)
            raise ValueError(
                f"from_tensorflow: the checkpoint {self._reader.path} has no slot {expected} for params/{name}; it has "
                f"{sorted(itertools.chain(*stored.values())) or 'no slots'}. Create the state with the optimizer that "
                "TensorFlow trained with. If that was given a name of its own, say so: optimizer_names={'MyAdam': "
                "'Adam'}."
            )
        found = stored[slot][0]
        self._taken.add(found)
        array = self._reader.read(found)
        if convert is not None:
            large = array.astype(np.float64) * _SCALE
            array = (convert(large) - convert(np.zeros_like(large))) / _SCALE
        if array.shape != leaf.shape:
            raise ValueError(
                f"from_tensorflow: {found} has the shape {array.shape}, and params/{name} has {leaf.shape}."
            )
        return jnp.asarray(signs[slot] * array, leaf.dtype)

    def warn_of_those_left(self) -> None:
        """Warns if something is stored for a variable, and has no place."""
        # The momentum of RMSProp is stored even where it is 0.
        stored = [names for slots in self._stored.values() for slot, names in slots.items() if slot != MOMENTUM]
        left = set(itertools.chain(*stored)) - self._taken - self._mapped
        if left:
            _logger.warning(
                "from_tensorflow: there is no place for the slots %s of %s, and training goes on without them. Create "
                "the state with the optimizer that TensorFlow trained with. Averages are variables: give them entries "
                "in the assignment map, such as {'dense/kernel/ExponentialMovingAverage': 'ema/params/dense/kernel'}.",
                *(", ".join(sorted(left)), self._reader.path),
            )
