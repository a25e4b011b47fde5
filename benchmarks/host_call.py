"""What happens around the steps, and what it costs: host_call, the default hooks and logs, the progress bar.

    python benchmarks/host_call.py [--pairs 15] [--steps 1500]

The MLP of benchmarks/train_loop.py through TPUEstimator, on one device, with and without the thing in question. Each
pair runs both in turn, in one process that is warm, and gives one ratio of times; the median is the result. Timed is
the
middle of a call of train, between two loops: the first loops, and the checkpoints at the start and at the end, are not
in it.
"""

import argparse
import itertools
import logging
import os
import pty
import statistics
import sys
import threading
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import optax
from train_loop import BATCH, MLP, loss_of, make_data

import jaxspec as js

WARM_STEPS = 300
QUIET = {
    "save_checkpoints_steps": None,
    "save_checkpoints_secs": None,
    "save_summary_steps": None,
    "log_step_count_steps": None,
    "progress_bar": False,
}


class Stopwatch(js.hooks.SessionRunHook):
    """Seconds from the first loop's end after WARM_STEPS to that after `steps` more; waits for the devices at both."""

    after_host_calls = False

    def __init__(self, steps):
        self._steps = steps
        self.seconds = 0.0

    def after_create_session(self, session, coord):
        self._start = session.global_step + WARM_STEPS
        self._stop = self._start + self._steps

    def next_step(self, global_step):
        return next((step for step in (self._start, self._stop) if step > global_step), None)

    def after_run(self, run_context, run_values):
        step = run_context.last_step + 1
        if step == self._start:
            _ = run_context.session.loss
            self._began = time.perf_counter()
        elif step == self._stop:
            run_context.session.finish_steps()  # host calls included
            self.seconds = time.perf_counter() - self._began


class Side:
    """One way to train the model."""

    def __init__(self, batches, *, host_call=False, **config):
        def model_fn(variables, features, labels, mode):
            loss = loss_of(MLP(), variables, features, labels)
            # Scalars that cost the devices nothing: what is measured is their way to the file.
            written = js.summary.host_call(loss=loss, perplexity=jnp.exp(loss), learning_rate=jnp.float32(1e-3))
            return js.TPUEstimatorSpec(
                mode,
                loss=loss,
                train_op=js.minimize(optax.adam(1e-3)),
                host_call=written if host_call else None,
            )

        self._batches = batches
        self._estimator = js.TPUEstimator(
            model_fn,
            MLP(),
            train_batch_size=BATCH,
            config=js.RunConfig(js.TPUConfig(iterations_per_loop=100, num_shards=1), **config),
        )

    def seconds(self, steps):
        """How long `steps` steps take."""
        watch = Stopwatch(steps)
        total = WARM_STEPS + steps + 100
        self._estimator.train(lambda: itertools.cycle(self._batches), steps=total, hooks=[watch])
        return watch.seconds


def ratio(name, side, other, pairs, steps):
    """Prints the time of `side` as a ratio to that of `other`."""
    for each in (side, other):
        each.seconds(WARM_STEPS)
    times = []
    for pair in range(pairs):
        # Who goes first alternates, too: what runs second finds the caches and the clock as the first left them.
        first, second = (side, other) if pair % 2 else (other, side)
        one, two = first.seconds(steps), second.seconds(steps)
        times.append((one, two) if pair % 2 else (two, one))
    ratios = sorted(a / b for a, b in times)
    rate = steps / statistics.median(b for _, b in times)
    print(
        f"{name}: {statistics.median(ratios):.3f} times the time (from {ratios[0]:.3f} to {ratios[-1]:.3f} in {pairs} "
        f"pairs of {steps} steps; {rate:.0f} steps/s without)",
        flush=True,
    )


class OnTerminal:
    """A side that runs with a pseudo-terminal for standard error, whose other end is read and thrown away."""

    def __init__(self, side):
        self._side = side
        self.characters = 0

    def seconds(self, steps):
        """As the side's."""
        ours, theirs = pty.openpty()
        before, sys.stderr = sys.stderr, os.fdopen(theirs, "w")
        reader = threading.Thread(target=self._read, args=(ours,))
        reader.start()
        try:
            return self._side.seconds(steps)
        finally:
            sys.stderr.close()
            sys.stderr = before
            reader.join()
            os.close(ours)

    def _read(self, terminal):
        try:
            while read := os.read(terminal, 4096):
                self.characters += len(read)
        except OSError:  # the other end is closed
            return


def main():
    """Runs everything."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--steps", type=int, default=1500)
    args = parser.parse_args()
    # The lines are made, as for a user who looks at them, and go nowhere.
    logger = logging.getLogger("jaxspec")
    logger.setLevel(logging.INFO)
    logger.addHandler(logging.StreamHandler(open(os.devnull, "w")))  # noqa: SIM115
    logger.propagate = False
    print(
        f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    batches = make_data()
    plain = Side(batches, **QUIET)
    ratio("nothing (how far to trust the rest)", Side(batches, **QUIET), plain, args.pairs, args.steps)
    ratio("host_call, 3 scalars each step", Side(batches, host_call=True, **QUIET), plain, args.pairs, args.steps)
    default = Side(batches, progress_bar=False)
    ratio("default hooks, logs, summaries", default, plain, args.pairs, args.steps)
    bar = OnTerminal(Side(batches, **{**QUIET, "progress_bar": True}))
    ratio("progress bar on a terminal", bar, plain, args.pairs, args.steps)
    assert bar.characters, "the bar was not shown"


if __name__ == "__main__":
    main()
