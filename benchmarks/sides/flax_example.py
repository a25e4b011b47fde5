"""The loop of Flax's own example: a TrainState, one jitted step, and a permutation of the examples for each epoch.

After https://github.com/google/flax/blob/main/examples/mnist/train.py and
https://flax-linen.readthedocs.io/en/latest/guides/flax_fundamentals/state_params.html, without TensorFlow Datasets.
The gradients and the update are in one jitted function here, which makes it faster.
"""

import jax
import numpy as np
from flax.training import train_state
from workloads import loss_of


@jax.jit
def train_step(state, features, labels):
    """(the new state, the loss)."""

    def loss_fn(params):
        return loss_of(state.apply_fn({"params": params}, features), labels)

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=grads), loss


class FlaxExample:
    """Trains epoch by epoch."""

    def __init__(self, workload, data):
        self.workload, self.data = workload, data
        self.rng = np.random.default_rng(0)
        params = workload.variables()["params"]
        self.state = train_state.TrainState.create(
            apply_fn=workload.module.apply, params=params, tx=workload.optimizer()
        )

    def train(self):
        """Trains on the set."""
        x, y = self.data
        for _ in range(self.workload.passes):
            losses = []
            for order in self.rng.permutation(len(x)).reshape(-1, self.workload.batch):
                self.state, loss = train_step(self.state, x[order], y[order])
                losses.append(loss)
            np.mean(jax.device_get(losses))
