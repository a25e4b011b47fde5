"""Steps per second of TPUEstimator.train against a hand-written loop, and whether memory grows.

    python benchmarks/train_loop.py [--pairs 7] [--steps 1000]

One device, the same model, data and optimizer on both sides. The hand-written loop is one `jax.jit` step that donates
its state, with batches put on the device two ahead and the loss fetched every 100 steps. The two run in turn in one
process, after a warm-up of both; each pair gives one ratio, and the median of the ratios is the result.
"""

import argparse
import itertools
import logging
import os
import resource
import statistics
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import flax.linen as nn
import jax
import numpy as np
import optax

import jaxspec as js

BATCH = 128
DISTINCT_BATCHES = 50


class MLP(nn.Module):
    """784-128-10."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(nn.relu(nn.Dense(128)(x.reshape(len(x), -1))))


class CNN(nn.Module):
    """Two convolutions on 28 x 28 images."""

    @nn.compact
    def __call__(self, x):
        for channels in (8, 16):
            x = nn.avg_pool(nn.relu(nn.Conv(channels, (3, 3))(x)), (2, 2), (2, 2))
        return nn.Dense(10)(x.reshape(len(x), -1))


def make_data():
    """Distinct batches of random images and labels, as a list."""
    rng = np.random.default_rng(0)
    return [
        (
            rng.normal(size=(BATCH, 28, 28, 1)).astype(np.float32),
            rng.integers(0, 10, BATCH).astype(np.int32),
        )
        for _ in range(DISTINCT_BATCHES)
    ]


def loss_of(module, variables, features, labels):
    """Mean cross entropy."""
    logits = module.apply(variables, features)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


class HandWritten:
    """The loop that one would write."""

    def __init__(self, module, batches):
        self.module, self.batches, self.optimizer = module, batches, optax.adam(1e-3)
        self.params = module.init(jax.random.key(0), batches[0][0])
        self.opt_state = self.optimizer.init(self.params)
        self.step = jax.jit(self._step, donate_argnums=(0, 1))

    def _step(self, params, opt_state, features, labels):
        loss, grads = jax.value_and_grad(lambda p: loss_of(self.module, p, features, labels))(params)
        updates, opt_state = self.optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    def run(self, steps):
        """Makes so many updates."""
        source = iter(itertools.islice(itertools.cycle(self.batches), steps))
        ahead = [jax.device_put(batch) for batch in itertools.islice(source, 2)]
        for i in range(steps):
            batch = ahead.pop(0)
            for following in itertools.islice(source, 1):
                ahead.append(jax.device_put(following))
            self.params, self.opt_state, loss = self.step(self.params, self.opt_state, *batch)
            if i % 100 == 99:
                float(loss)
        jax.block_until_ready(self.params)


class Estimator:
    """The same through TPUEstimator."""

    def __init__(self, module, batches, **tpu):
        def model_fn(variables, features, labels, mode):
            loss = loss_of(module, variables, features, labels)
            return js.TPUEstimatorSpec(mode, loss=loss, train_op=js.minimize(optax.adam(1e-3)))

        self.batches = batches
        self.estimator = js.TPUEstimator(
            model_fn,
            module,
            train_batch_size=BATCH,
            config=js.RunConfig(
                js.TPUConfig(num_shards=1, **tpu), save_checkpoints_steps=None, save_checkpoints_secs=None
            ),
        )

    def run(self, steps):
        """Makes so many updates."""
        self.estimator.train(lambda: itertools.cycle(self.batches), steps=steps)


def seconds(side, steps):
    """How long so many steps take."""
    began = time.perf_counter()
    side.run(steps)
    return time.perf_counter() - began


def compare(name, module, pairs, steps):
    """Prints the ratio of steps per second, estimator to hand-written loop."""
    batches = make_data()
    hand, estimator = HandWritten(module, batches), Estimator(module, batches)
    for side in (hand, estimator):
        side.run(200)
    times = [(seconds(hand, steps), seconds(estimator, steps)) for _ in range(pairs)]
    ratios = sorted(a / b for a, b in times)
    rates = [steps / statistics.median(column) for column in zip(*times, strict=True)]
    print(
        f"{name}: TPUEstimator / hand-written = {statistics.median(ratios):.2f} "
        f"(from {ratios[0]:.2f} to {ratios[-1]:.2f} in {pairs} pairs of {steps} steps); "
        f"{rates[1]:.0f} and {rates[0]:.0f} steps/s"
    )


def memory(steps):
    """Prints how much resident memory grows between a short and a long run."""

    def peak():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    side = Estimator(MLP(), make_data())
    side.run(steps)
    before = peak()
    side.run(10 * steps)
    print(f"peak resident memory: {before:.0f} MiB after {steps} steps, {peak():.0f} MiB after {11 * steps}")


def main():
    """Runs everything."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--steps", type=int, default=1000)
    args = parser.parse_args()
    logging.getLogger("jaxspec").setLevel(logging.ERROR)
    print(
        f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    compare("MLP 784-128-10, batch 128", MLP(), args.pairs, args.steps)
    compare("CNN 28x28, batch 128", CNN(), args.pairs, max(50, args.steps // 10))
    memory(args.steps)


if __name__ == "__main__":
    main()
