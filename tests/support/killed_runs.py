"""A program that trains to the end, killed with SIGKILL at a given moment on the way: a process for each line of its
input.

JAX is imported once and not used before the fork.
"""

import json
import os
import signal
import sys

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import optax
from tiny_models import data, linear_init, linear_logits, run_config

import jaxspec as js

STEPS = 24


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


class WhenWhole(js.hooks.CheckpointSaverListener):
    """Kills when a checkpoint is whole, before anything follows."""

    def __init__(self, step):
        self.step = step

    def after_save(self, session, global_step):
        if global_step == self.step:
            kill()


class WhileWriting(js.hooks.SessionRunHook):
    """Kills while a checkpoint is being written in the background. Comes after the checkpoint saver."""

    def __init__(self, step):
        self.step = step

    def after_run(self, run_context, run_values):
        if run_context.session.global_step == self.step:
            kill()


def model_fn(variables, features, labels, mode, rng):
    """Everything that a restart must bring back: the optimizer's state, the key, the place in the shuffled input."""
    features = features + jax.random.normal(rng, features.shape, jnp.float32)
    logits = linear_logits(variables, features)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return js.TPUEstimatorSpec(mode, loss=loss, train_op=js.minimize(optax.adam(1e-2)))


def estimator(model_dir):
    return js.TPUEstimator(
        model_fn,
        linear_init,
        model_dir=model_dir,
        config=run_config(save=5, every=100, num_shards=1, tf_random_seed=7),
        train_batch_size=8,
    )


def train(model_dir, when_whole=None, while_writing=None):
    jax.config.update("jax_num_cpu_devices", 1)
    x, y = data(rows=72)
    estimator(model_dir).train(
        js.inputs.numpy_input_fn(x, y, num_epochs=None, shuffle=True, seed=3),
        max_steps=STEPS,
        hooks=[] if while_writing is None else [WhileWriting(while_writing)],
        saving_listeners=[] if when_whole is None else [WhenWhole(when_whole)],
    )


def main():
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            train(**json.loads(line))
            return
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
