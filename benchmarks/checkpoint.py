"""What training pays for a checkpoint: asynchronous, synchronous, and with orbax by hand; and how long a restore takes.

    python benchmarks/checkpoint.py [--rounds 5] [--sizes 1 500] [--directory DIR] [--json FILE]

A perceptron with so many MB of weights trains with SGD on one device. Each round times the same number of steps with
one checkpoint at their beginning, and without, one after the other; the order alternates. Given are medians over the
rounds of

- the stall: how long the call lasts that saves, and the one that later looks at the result and removes the checkpoint
  before, in ms;
- the cost: the longer time of all the steps, which is the stall and what the writing in the background takes from the
  devices (on a CPU they are the same cores). As a share it is given for a checkpoint every 100 steps.

A synchronous checkpoint is one that training waits for, as it does where there are listeners. "By hand" is a `jax.jit`
step in a loop and `orbax.checkpoint.v1`, without our checksums, checks for NaN, and removal of old checkpoints.
"""

import argparse
import gc
import itertools
import json
import logging
import os
import platform
import shutil
import statistics
import tempfile
import time
from importlib.metadata import version

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import optax
import orbax.checkpoint.experimental.v1 as ocp

import jaxspec as js
from jaxspec._src.checkpoint import checksums, restore

EVERY = 100
MODELS = {1: ((784, 320, 10), 1024, 100), 500: ((2000, 40_000, 1125), 8, 20)}
"""By MB of weights: sizes of the layers, examples in a batch, steps in one measurement."""


class Model:
    """A perceptron, its data and its state."""

    def __init__(self, megabytes):
        self.sizes, batch, self.steps = MODELS[megabytes]
        rng = np.random.default_rng(0)
        self.batches = [
            (rng.normal(size=(batch, self.sizes[0])).astype(np.float32), rng.integers(0, 10, batch).astype(np.int32))
            for _ in range(4)
        ]

    def init(self, rng):
        layers = itertools.pairwise(self.sizes)
        return {"params": {f"w{i}": 0.01 * jax.random.normal(rng, shape) for i, shape in enumerate(layers)}}

    def loss(self, variables, features, labels):
        w = variables["params"]
        logits = jax.nn.relu(features @ w["w0"]) @ w["w1"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


class Save(js.hooks.SessionRunHook):
    """Saves once, and measures: the stall, and the time of so many steps from then on."""

    def __init__(self, mode, steps):
        self.mode, self.steps = mode, steps

    def start_saving(self, model_dir, listeners=()):
        self.directory = model_dir
        return model_dir

    def after_create_session(self, session, coord):
        self.start = session.global_step + 5

    def next_step(self, global_step):
        return next((step for step in (self.start, self.start + self.steps) if step > global_step), None)

    def after_run(self, run_context, run_values):
        session = run_context.session
        if session.global_step == self.start:
            session.finish_steps()
            _ = session.loss
            self.began = time.perf_counter()
            if self.mode != "none":
                session.save_checkpoint(self.directory)
            if self.mode == "synchronous":
                session.finish_checkpoint(self.directory)
            self.stall = time.perf_counter() - self.began
        elif session.global_step == self.start + self.steps:
            _ = session.loss
            ended = time.perf_counter()
            session.finish_checkpoint(self.directory)
            self.stall += time.perf_counter() - ended
            self.seconds = time.perf_counter() - self.began


class Estimator:
    """Trains through TPUEstimator."""

    def __init__(self, model, directory):
        self.model, self.directory = model, directory

        def model_fn(variables, features, labels, mode):
            loss = model.loss(variables, features, labels)
            return js.TPUEstimatorSpec(mode, loss=loss, train_op=js.minimize(optax.sgd(1e-3)))

        self.estimator = js.TPUEstimator(
            model_fn,
            model.init,
            model_dir=directory,
            config=js.RunConfig(
                js.TPUConfig(num_shards=1),
                save_checkpoints_steps=None,
                save_checkpoints_secs=None,
                save_summary_steps=None,
                log_step_count_steps=None,
                keep_checkpoint_max=1,
                progress_bar=False,
            ),
            train_batch_size=len(model.batches[0][0]),
        )

    def run(self, mode):
        """(stall, time of the steps), in seconds."""
        hook = Save(mode, self.model.steps)
        steps = 5 + self.model.steps
        self.estimator.train(lambda: itertools.cycle(self.model.batches), steps=steps, hooks=[hook])
        return hook.stall, hook.seconds

    def restore(self):
        """The time to check every byte and to read the variables, in seconds."""
        checksums._file_with_other_bytes.cache_clear()  # as in a new process
        path = js.checkpoint.latest_checkpoint(self.directory)
        variables = jax.eval_shape(self.model.init, jax.random.key(0))
        began = time.perf_counter()
        jax.block_until_ready(restore.read_variables(path, variables, sharding()))
        return time.perf_counter() - began


class ByHand:
    """The loop that one would write."""

    def __init__(self, model, directory):
        self.model, self.path = model, os.path.join(directory, "state")
        optimizer = optax.sgd(1e-3)

        def step(state, features, labels):
            loss, grads = jax.value_and_grad(model.loss)(state["variables"], features, labels)
            updates, opt_state = optimizer.update(grads, state["opt_state"])
            return {"variables": optax.apply_updates(state["variables"], updates), "opt_state": opt_state}, loss

        self.step = jax.jit(step, donate_argnums=0)
        variables = jax.jit(model.init)(jax.random.key(0))
        self.state = {"variables": variables, "opt_state": optimizer.init(variables)}

    def run(self, mode):
        """(stall, time of the steps), in seconds."""
        source, writing = itertools.cycle(self.model.batches), None
        for batch in itertools.islice(source, 5):
            self.state, loss = self.step(self.state, *batch)
        loss.block_until_ready()
        began = time.perf_counter()
        if mode != "none":
            writing = ocp.save_checkpointables_async(self.path, {"variables": self.state["variables"]}, overwrite=True)
        if mode == "synchronous":
            writing.result()
        stall = time.perf_counter() - began
        for batch in itertools.islice(source, self.model.steps):
            self.state, loss = self.step(self.state, *batch)
            loss.block_until_ready()
        ended = time.perf_counter()
        if writing is not None:
            writing.result()
        return stall + time.perf_counter() - ended, time.perf_counter() - began

    def restore(self):
        """The time to read the weights, in seconds."""
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding()), self.state["variables"]
        )
        began = time.perf_counter()
        jax.block_until_ready(ocp.load_checkpointables(self.path, {"variables": like}))
        return time.perf_counter() - began


def sharding():
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def measure(megabytes, rounds, directory):
    """The table's rows for one size."""
    model, rows = Model(megabytes), []
    for name, kind in (("jaxspec", Estimator), ("orbax by hand", ByHand)):
        path = os.path.join(directory, f"{name} {megabytes}")
        os.makedirs(path)
        side = kind(model, path)
        modes = ("none", "asynchronous", "synchronous")
        for mode in modes:
            side.run(mode)  # compiles, and imports
        times = {mode: [] for mode in modes}
        for number in range(rounds):
            for mode in modes if number % 2 else reversed(modes):
                times[mode].append(side.run(mode))
        restores = [side.restore() for _ in range(rounds)]
        step = statistics.median(seconds for _, seconds in times["none"]) / model.steps
        for mode in modes[1:]:
            costs = [seconds - plain for (_, seconds), (_, plain) in zip(times[mode], times["none"], strict=True)]
            cost = statistics.median(costs)
            rows.append(
                {
                    "MB": megabytes,
                    "side": name,
                    "checkpoint": mode,
                    "stall_ms": 1e3 * statistics.median(stall for stall, _ in times[mode]),
                    "cost_ms": 1e3 * cost,
                    "cost_ms_of_each_round": [1e3 * each for each in costs],
                    "step_ms": 1e3 * step,
                    "share_of_time_every_100_steps": cost / (EVERY * step + cost),
                    "restore_ms": 1e3 * statistics.median(restores),
                }
            )
        del side
        gc.collect()
        shutil.rmtree(path)
    return rows


def main():
    """Runs everything."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", choices=list(MODELS), default=list(MODELS), help="in MB")
    parser.add_argument("--directory", help="where checkpoints are written; default: a temporary directory")
    parser.add_argument("--json", help="a file to write the figures to")
    args = parser.parse_args()
    logging.getLogger("jaxspec").setLevel(logging.ERROR)
    versions = {name: version(name) for name in ("jax", "jaxlib", "orbax-checkpoint", "tensorstore", "numpy")}
    machine = {"device": jax.devices()[0].device_kind, "cores": os.cpu_count(), "python": platform.python_version()}
    about = {**versions, **machine, "load": f"{os.getloadavg()[0]:.1f}"}
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print("| weights | who | checkpoint | stall | cost | of the time, one every 100 steps | restore |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    rows = []
    for megabytes in args.sizes:
        with tempfile.TemporaryDirectory(dir=args.directory) as directory:
            for row in measure(megabytes, args.rounds, directory):
                rows.append(row)
                print(
                    f"| {row['MB']} MB, {row['step_ms']:.0f} ms a step | {row['side']} | {row['checkpoint']} "
                    f"| {row['stall_ms']:.0f} ms | {row['cost_ms']:.0f} ms "
                    f"| {row['share_of_time_every_100_steps']:.1%} | {row['restore_ms']:.0f} ms |",
                    flush=True,
                )
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"versions": versions, "machine": machine, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
