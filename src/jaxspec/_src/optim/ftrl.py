"""FTRL-Proximal as TensorFlow 1 computes it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxspec._src.base.types import PyTree
from jaxspec._src.optim.learning_rate import LearningRate, rate_at


class FtrlState(NamedTuple):
    """The state of `ftrl`."""

    step: jax.Array
    """int32 scalar: the number of updates so far."""
    accumulators: PyTree
    """The sums of the squared gradients, a tree like the parameters."""
    linears: PyTree
    """The sums that the parameters are computed from, a tree like the parameters."""


def ftrl(
    learning_rate: LearningRate,
    learning_rate_power: float = -0.5,
    initial_accumulator_value: float = 0.1,
    l1_regularization_strength: float = 0.0,
    l2_regularization_strength: float = 0.0,
    l2_shrinkage_regularization_strength: float = 0.0,
    beta: float = 0.0,
) -> optax.GradientTransformation:
    """The update of `tf.compat.v1.train.FtrlOptimizer`, whose arguments and defaults these are.

    It computes each parameter anew from two sums, so that many parameters become exactly 0 with an L1 penalty.

    Args:
      learning_rate: a number, or a schedule: a function of the number of updates so far, from 0.
      learning_rate_power: 0 or less. 0 keeps the learning rate, -0.5 lets it fall as Adagrad does.
      initial_accumulator_value: what the sums of squares start with, 0 or more.
      l1_regularization_strength, l2_regularization_strength: of the penalties, 0 or more.
      l2_shrinkage_regularization_strength: of a penalty on the gradient alone, 0 or more.
      beta: 0 or more; it acts as an L2 penalty that is divided by the learning rate.

    Returns:
      A transformation whose `update` needs the parameters.

    Raises:
      ValueError: for an argument on the wrong side of 0.
    """
    for name, value in {
        "-learning_rate_power": -learning_rate_power,
        "initial_accumulator_value": initial_accumulator_value,
        "l1_regularization_strength": l1_regularization_strength,
        "l2_regularization_strength": l2_regularization_strength,
        "l2_shrinkage_regularization_strength": l2_shrinkage_regularization_strength,
        "beta": beta,
    }.items():
        if not isinstance(value, jax.Array) and not value >= 0:
            raise ValueError(f"ftrl: {name} must be 0 or more, got {value}.")
    l1, l2, shrinkage = l1_regularization_strength, l2_regularization_strength, l2_shrinkage_regularization_strength

    def init(params: PyTree) -> FtrlState:
        accumulators = jax.tree.map(lambda param: jnp.full_like(param, initial_accumulator_value), params)
        return FtrlState(jnp.int32(0), accumulators, jax.tree.map(jnp.zeros_like, params))

    def power(accumulator: jax.Array) -> jax.Array:
        is_root = not isinstance(learning_rate_power, jax.Array) and learning_rate_power == -0.5
        return jnp.sqrt(accumulator) if is_root else accumulator**-learning_rate_power

    def update(gradients: PyTree, state: FtrlState, params: PyTree = None) -> tuple[PyTree, FtrlState]:
        if params is None:
            raise ValueError("ftrl: write update(gradients, state, params): it needs the parameters.")
        rate = jnp.asarray(rate_at(learning_rate, state.step))

        def next_linear(
            linear: jax.Array, gradient: jax.Array, param: jax.Array, old: jax.Array, new: jax.Array
        ) -> jax.Array:
            change = (power(new) - power(old)) / rate.astype(param.dtype) * param
            return linear + gradient + 2 * shrinkage * param - change

        def change(linear: jax.Array, accumulator: jax.Array, param: jax.Array) -> jax.Array:
            here = rate.astype(param.dtype)
            steepness = power(accumulator) / here + 2 * l2 + beta / here
            return (jnp.clip(linear, -l1, l1) - linear) / steepness - param

        accumulators = jax.tree.map(lambda sum, gradient: sum + gradient**2, state.accumulators, gradients)
        linears = jax.tree.map(next_linear, state.linears, gradients, params, state.accumulators, accumulators)
        updates = jax.tree.map(change, linears, accumulators, params)
        return updates, FtrlState(state.step + 1, accumulators, linears)

    return optax.GradientTransformation(init, update)
