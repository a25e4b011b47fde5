"""The pure training step."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from jaxspec._src.base.arrays import describe_array, named_leaves
from jaxspec._src.spec.mode import ModeKeys
from jaxspec._src.spec.tpu_estimator_spec import TPUEstimatorSpec, WholeBatchSpec, replaced
from jaxspec._src.step.axis import bind_shard_axis, mean_over_shards, shard_axis_is_bound, shard_index, varying
from jaxspec._src.step.init import strong_arrays
from jaxspec._src.step.leaving import leaving_device
from jaxspec._src.step.model import Model
from jaxspec._src.step.state import TrainState
from jaxspec._src.step.update import apply_train_ops


def make_train_step(
    model_fn: Callable[..., Any], params: Mapping[str, Any] | None = None
) -> Callable[..., tuple[TrainState, TPUEstimatorSpec]]:
    """A pure function `(state, features, labels=None) -> (state, spec)` that makes one update.

    It may be jitted, scanned, vmapped, or mapped with `replicate`. The spec holds what leaves the device in TRAIN:
    `loss` (a scalar, averaged over shards) and host_call's tensors of this shard. A mapping of your own must name
    its axis `SHARD_AXIS`, or its devices do not see each other.
    """
    return train_step(Model(model_fn, params))


def train_step(model: Model) -> Callable[..., tuple[TrainState, TPUEstimatorSpec]]:
    """`make_train_step` of a Model."""
    step = bind_shard_axis(functools.partial(_train_step, model))

    def train(state: TrainState, features: Any, labels: Any = None) -> tuple[TrainState, TPUEstimatorSpec]:
        new_state, spec = step(state, features, labels)
        return new_state, spec if shard_axis_is_bound() else WholeBatchSpec._make(spec)

    return train


def _shard_rng(state: TrainState) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(state.rng, state.step), shard_index())


def _train_step(
    model: Model, state: TrainState, features: Any, labels: Any = None
) -> tuple[TrainState, TPUEstimatorSpec]:
    rng = varying(_shard_rng(state))

    def call(variables: Any) -> TPUEstimatorSpec:
        return model(ModeKeys.TRAIN, variables, features, labels, step=state.step, rng=rng)

    variables, opt_state, spec = apply_train_ops(call, leaving_device, state.variables, state.opt_state)
    new_state = _check_same_types(state, TrainState(next_step(state.step), variables, opt_state, state.rng))
    return new_state, replaced(spec, loss=mean_over_shards(spec.loss))


def next_step(step: Any) -> Any:
    """The number of the step after `step`. It stands still at the top of its type: a negative step would be worse."""
    return jnp.where(step == np.iinfo(step.dtype).max, step, step + 1)


def _check_same_types(old: TrainState, new: TrainState) -> TrainState:
    """`new`, whose leaves must have the shapes and dtypes of `old`; without weak types, which `old` cannot have."""
    structures: list[Any] = [jax.tree.structure(old), jax.tree.structure(new)]
    if structures[0] != structures[1]:
        was, now = named_leaves(old), named_leaves(new)
        different = sorted(set(was) ^ set(now)) or ["the tree's node types"]
        raise ValueError(f"the training step changes the structure of the state: {', '.join(different)} differ.")
    after = named_leaves(new)
    for name, was in named_leaves(old).items():
        now = after[name]
        if jnp.shape(was) != jnp.shape(now) or jnp.result_type(was) != jnp.result_type(now):
            raise ValueError(
                f"the training step changes {name} from {describe_array(was)} to {describe_array(now)}; an update "
                "must keep shape and dtype."
            )
    state: TrainState = strong_arrays(new)
    return state
