"""Adam as TensorFlow 1 and BERT compute it."""

import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxspec._src.base.arrays import path_name
from jaxspec._src.base.types import PyTree
from jaxspec._src.optim.learning_rate import LearningRate, rate_at


def adam(
    learning_rate: LearningRate = 0.001, beta1: float = 0.9, beta2: float = 0.999, epsilon: float = 1e-8
) -> optax.GradientTransformation:
    """The update of `tf.compat.v1.train.AdamOptimizer`, whose arguments and defaults these are.

    With `m` and `v`, the averages of the gradient and of its square, and `t`, the number of this update from 1, it is
    `-learning_rate * sqrt(1 - beta2**t) / (1 - beta1**t) * m / (sqrt(v) + epsilon)`. `optax.adam` adds epsilon to
    `sqrt(v / (1 - beta2**t))` instead: as long as `t` is small, the same epsilon is larger here.

    Args:
      learning_rate: a number, or a schedule: a function of the number of updates so far, from 0.
      beta1, beta2: the decay of `m` and of `v`, a number below 1.
      epsilon: it is added to the root of `v`.

    Returns:
      A transformation whose state is an `optax.ScaleByAdamState`. The averages have the dtypes of the parameters.
    """
    # Rounded to float32, as in TensorFlow: the errors of 1 - beta2 in `v` and in its correction cancel then.
    decay1, decay2 = (x if isinstance(x, jax.Array) else float(np.float32(x)) for x in (beta1, beta2))

    def update(
        gradients: PyTree, state: optax.ScaleByAdamState, params: PyTree = None
    ) -> tuple[PyTree, optax.ScaleByAdamState]:
        m, v = _averages(gradients, state, 1 - decay1, 1 - decay2)
        count = state.count + 1
        t = count.astype(jnp.float32)
        rate = rate_at(learning_rate, state.count) * jnp.sqrt(1 - decay2**t) / (1 - decay1**t)
        updates = jax.tree.map(lambda m, v: -rate.astype(m.dtype) * m / (jnp.sqrt(v) + epsilon), m, v)
        return updates, optax.ScaleByAdamState(count, m, v)

    return optax.GradientTransformation(_init, update)


def adam_weight_decay(
    learning_rate: LearningRate,
    weight_decay_rate: float = 0.0,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-6,
    exclude_from_weight_decay: Sequence[str] = (),
) -> optax.GradientTransformation:
    """The update of BERT's `AdamWeightDecayOptimizer`, whose arguments and defaults these are.

    It is `-learning_rate * (m / (sqrt(v) + epsilon) + weight_decay_rate * parameter)`, without the correction for the
    first updates that `optax.adamw` makes.

    Args:
      learning_rate: a number, or a schedule: a function of the number of updates so far, from 0.
      weight_decay_rate: it is multiplied by the learning rate.
      beta_1, beta_2: the decay of `m` and of `v`, the averages of the gradient and of its square.
      epsilon: it is added to the root of `v`.
      exclude_from_weight_decay: regular expressions, which are searched for in the path of each parameter, such as
        `encoder/layer_0/LayerNorm_0/scale`. Parameters with a match do not decay. BERT excludes LayerNorm and bias.

    Returns:
      A transformation whose state is an `optax.ScaleByAdamState`. Its `update` needs the parameters.
    """
    patterns = [exclude_from_weight_decay] if isinstance(exclude_from_weight_decay, str) else exclude_from_weight_decay

    def update(
        gradients: PyTree, state: optax.ScaleByAdamState, params: PyTree = None
    ) -> tuple[PyTree, optax.ScaleByAdamState]:
        if params is None:
            raise ValueError("adam_weight_decay: write update(gradients, state, params): it needs the parameters.")
        m, v = _averages(gradients, state, 1 - beta_1, 1 - beta_2)
        rate = jnp.asarray(rate_at(learning_rate, state.count))

        def one(path: tuple[object, ...], m: jax.Array, v: jax.Array, param: jax.Array) -> jax.Array:
            change = m / (jnp.sqrt(v) + epsilon)
            if not any(re.search(pattern, path_name(path)) for pattern in patterns):
                change += weight_decay_rate * param
            return -rate.astype(m.dtype) * change

        updates = jax.tree_util.tree_map_with_path(one, m, v, params)
        return updates, optax.ScaleByAdamState(state.count + 1, m, v)

    return optax.GradientTransformation(_init, update)


def _init(params: PyTree) -> optax.ScaleByAdamState:
    m, v = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
    return optax.ScaleByAdamState(jnp.int32(0), m, v)


def _averages(gradients: PyTree, state: optax.ScaleByAdamState, rest1: float, rest2: float) -> tuple[PyTree, PyTree]:
    """The averages of the gradient and of its square, of which the new value gets the weights `rest1` and `rest2`."""
    m = jax.tree.map(lambda m, gradient: m + (gradient - m) * rest1, state.mu, gradients)
    v = jax.tree.map(lambda v, gradient: v + (gradient**2 - v) * rest2, state.nu, gradients)
    return m, v
