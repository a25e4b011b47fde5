"""What a step costs around its arithmetic, for loops of 1 to 1,000 steps, and states of 10 and of 300 arrays.

    python benchmarks/loops.py [--quick] [--rounds 5]

The step adds up all arrays of the state, which are tiny, so that the time is that of the calls. jaxspec's loops have
`iterations_per_loop` steps; beside it are a hand-written `jit` step, and `lax.scan` over as many steps, whose batches
are on the device already. With one step a loop the figure is the cost of a dispatch.
"""

import itertools
import logging
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from harness import Benchmark
from sides.estimator import QUIET

import jaxspec as js

LENGTHS = (1, 3, 10, 30, 100, 300, 1_000)
BATCH = np.ones((1, 4), np.float32)


def loss_of(params, features):
    """The mean of the batch, times the sum of all arrays."""
    return features.mean() * sum(x.sum() for x in params.values())


def fresh(leaves):
    """The parameters."""
    return {f"w{i}": jnp.zeros(4) for i in range(leaves)}


def estimator_of(leaves, length):
    """A TPUEstimator with loops of this length."""

    def model_fn(variables, features):
        loss = loss_of(variables["params"], features)
        return js.TPUEstimatorSpec("train", loss=loss, train_op=js.minimize(optax.sgd(0.1)))

    config = js.RunConfig(js.TPUConfig(iterations_per_loop=length, num_shards=1), **QUIET)
    return js.TPUEstimator(model_fn, lambda: {"params": fresh(leaves)}, config=config, train_batch_size=1)


class ByHand:
    """`jit` of the step for one step a call, `lax.scan` for more."""

    def __init__(self, leaves, length):
        def step(params, features):
            loss, grads = jax.value_and_grad(loss_of)(params, features)
            return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), loss

        self.length, self.params = length, jax.jit(lambda: fresh(leaves))()
        many = step if length == 1 else (lambda params, stack: jax.lax.scan(step, params, stack))
        self.call = jax.jit(many, donate_argnums=0)
        self.batch = jax.device_put(BATCH if length == 1 else np.stack([BATCH] * length))

    def train(self, steps):
        """So many steps, or up to a call's more; returns how many."""
        calls = -(-steps // self.length)
        for _ in range(calls):
            self.params, _ = self.call(self.params, self.batch)
        jax.block_until_ready(self.params)
        return calls * self.length


def train(estimator, steps):
    """So many steps of TPUEstimator.train."""
    estimator.train(lambda: itertools.repeat(BATCH), steps=steps)
    return steps


def microseconds(train, steps):
    """The time of a step."""
    began = time.perf_counter()
    made = train(steps)
    return 1e6 * (time.perf_counter() - began) / made


def main():
    benchmark = Benchmark(__doc__, rounds=5)
    logging.getLogger("jaxspec").setLevel(logging.ERROR)
    for leaves in (10, 300):
        title = f"microseconds a step, {leaves} arrays"
        if benchmark.skips(title):
            continue
        sides = {}
        for length in LENGTHS[:: benchmark.pick(1, 6)]:
            # The time of a call of train, and of its first loop, counts, too; it is small beside that of so many steps.
            steps = benchmark.pick(max(1_000, min(5_000, 100 * length)), 10)
            ours, hand = estimator_of(leaves, length), ByHand(leaves, length)
            sides[f"jaxspec @ {length}"] = partial(microseconds, partial(train, ours), steps)
            sides[f"jit or lax.scan @ {length}"] = partial(microseconds, hand.train, steps)
        benchmark.compare(title, "us", sides, lower_is_better=True, x="steps in a loop")
    benchmark.save()


if __name__ == "__main__":
    main()
