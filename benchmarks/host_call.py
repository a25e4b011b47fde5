"""What happens around the steps, and what it costs: host_call, the default hooks, the progress bar.

    python benchmarks/host_call.py [--quick] [--rounds 7]

The MLP, with and without the thing in question. Timed is the middle of a call of train, between two loops: the
checkpoints at the start and at the end are not in it. A host_call by bytes gives one float32 array of so many bytes
at each step to a function that does nothing.
"""

import logging
import os
import pty
import sys
import threading
import time

import jax.numpy as jnp
from harness import Benchmark
from sides.estimator import Estimator
from workloads import workload

import jaxspec as js

BYTES = (4, 400, 40_000, 4_000_000)
WARM_STEPS = 200
DEFAULTS = {"save_checkpoints_secs": 600, "save_summary_steps": 100, "log_step_count_steps": 100}
"""Of RunConfig: what the other benchmarks switch off."""


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


def microseconds(side, steps):
    """The time of a step."""
    watch = Stopwatch(steps)
    side.train(steps=WARM_STEPS + steps + 100, hooks=[watch])
    return 1e6 * watch.seconds / steps


def on_terminal(side, steps):
    """The same with a pseudo-terminal for standard error, whose other end is read and thrown away."""
    ours, theirs = pty.openpty()
    before, sys.stderr = sys.stderr, os.fdopen(theirs, "w")
    characters = []
    reader = threading.Thread(target=_read, args=(ours, characters))
    reader.start()
    try:
        return microseconds(side, steps)
    finally:
        sys.stderr.close()
        sys.stderr = before
        reader.join()
        os.close(ours)
        assert characters, "the bar was not shown"


def _read(terminal, characters):
    try:
        while read := os.read(terminal, 4096):
            characters += read
    except OSError:  # the other end is closed
        return


def three_scalars(loss):
    """A host_call of summaries. They cost the devices nothing: what is measured is their way to the file."""
    return js.summary.host_call(loss=loss, perplexity=jnp.exp(loss), learning_rate=jnp.float32(1e-3))


def array_of(size):
    """A host_call of an array of so many bytes."""
    return lambda loss: (lambda values: None, [jnp.full((1, size // 4), loss)])


def main():
    benchmark = Benchmark(__doc__, rounds=7)
    # The lines are made, as for a user who looks at them, and go nowhere.
    logger = logging.getLogger("jaxspec")
    logger.setLevel(logging.INFO)
    logger.addHandler(logging.StreamHandler(open(os.devnull, "w")))  # noqa: SIM115
    logger.propagate = False
    work = workload("MLP", benchmark.quick)
    data = work.data()
    steps = benchmark.pick(1_000, 100)
    plain = Estimator(work, data)
    kinds = {
        "plain": plain,
        "plain, again": Estimator(work, data),
        "host_call, 3 scalars": Estimator(work, data, host_call=three_scalars),
        "default hooks, logs, summaries": Estimator(work, data, **DEFAULTS),
    }
    sides = {name: lambda side=side: microseconds(side, steps) for name, side in kinds.items()}
    bar = Estimator(work, data, progress_bar=True)
    sides["progress bar on a terminal"] = lambda: on_terminal(bar, steps)
    ours = [name for name in sides if name != "plain"]
    benchmark.compare(
        "around the steps, MLP", "us a step", sides, ours=ours, theirs={"plain": ["plain"]}, lower_is_better=True
    )
    by_bytes = {f"host_call @ {size}": Estimator(work, data, host_call=array_of(size)) for size in BYTES}
    sides = {name: lambda side=side: microseconds(side, steps // 2) for name, side in by_bytes.items()}
    benchmark.compare("host_call by its size, MLP", "us a step", sides, lower_is_better=True, x="bytes a step")
    benchmark.save()


if __name__ == "__main__":
    main()
