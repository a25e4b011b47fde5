"""The pure training step."""

from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec._src.base.arrays import describe_array, named_leaves
from jaxspec._src.base.types import Batch, HyperParameters, Variables
from jaxspec._src.spec.mode import ModeKeys
from jaxspec._src.spec.tpu_estimator_spec import ModelFn, TPUEstimatorSpec, replaced
from jaxspec._src.step.axis import bind_shard_axis, mean_over_shards, shard_index, varying
from jaxspec._src.step.model import Model, marked_if_whole
from jaxspec._src.step.state import TrainState
from jaxspec._src.step.update import apply_train_ops
from jaxspec._src.step.variables import strong_arrays


class TrainStep(Protocol):
    """One update on one shard's batch."""

    def __call__(
        self, state: TrainState, features: Batch, labels: Batch = None
    ) -> tuple[TrainState, TPUEstimatorSpec]: ...


def make_train_step(model_fn: ModelFn, params: HyperParameters = None) -> TrainStep:
    """A pure function `(state, features, labels=None) -> (state, spec)` that makes one update.

    It may be jitted, scanned, vmapped, or mapped with `replicate`. The spec holds what leaves the device in TRAIN:
    `loss` (a scalar, averaged over shards) and host_call's tensors of this shard. Any other mapping must name its axis
    `SHARD_AXIS`, or its devices do not see each other.

    Args:
      model_fn: as in `TPUEstimator`.
      params: hyper-parameters.
    """
    return train_step(Model(model_fn, params))


def train_step(model: Model) -> TrainStep:
    """`make_train_step` of a Model."""

    @bind_shard_axis
    def bound(state: TrainState, features: Batch, labels: Batch) -> tuple[TrainState, TPUEstimatorSpec]:
        rng = varying(jax.random.fold_in(jax.random.fold_in(state.rng, state.step), shard_index()))

        def call(variables: Variables) -> TPUEstimatorSpec:
            return model(ModeKeys.TRAIN, variables, features, labels, step=state.step, rng=rng)

        variables, opt_state, spec = apply_train_ops(call, state.variables, state.opt_state)
        # The largest number stays, because a negative step would be worse.
        step = jnp.where(state.step == np.iinfo(state.step.dtype).max, state.step, state.step + 1)
        new_state = _checked(state, TrainState(step, variables, opt_state, state.rng))
        return new_state, replaced(spec, loss=mean_over_shards(spec.loss))

    def step(state: TrainState, features: Batch, labels: Batch = None) -> tuple[TrainState, TPUEstimatorSpec]:
        new_state, spec = bound(state, features, labels)
        return new_state, marked_if_whole(spec)

    return step


def _checked(old: TrainState, new: TrainState) -> TrainState:
    """`new`, whose leaves must have the shapes and dtypes of `old`; without weak types, which `old` cannot have."""
    before, after = named_leaves(old), named_leaves(new)
    if len({jax.tree.structure(state) for state in (old, new)}) > 1:
        different = sorted(set(before) ^ set(after)) or ["the tree's node types"]
        raise ValueError(f"the training step changes the structure of the state: {', '.join(different)} differ.")
    for name, was in before.items():
        now = after[name]
        if jnp.shape(was) != jnp.shape(now) or jnp.result_type(was) != jnp.result_type(now):
            raise ValueError(
                f"the training step changes {name} from {describe_array(was)} to {describe_array(now)}; an update "
                "must keep shape and dtype."
            )
    state: TrainState = strong_arrays(new)
    return state
