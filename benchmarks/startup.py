"""Seconds from the start of Python to the end of the first step, without and with a filled compilation cache.

    python benchmarks/startup.py [--quick] [--rounds 3]

Each time is that of a process of its own which imports, makes the model, and trains one step on the first batch. Cold:
JAX's compilation cache is empty; warm: a process before it has filled the cache. No process before it has the file
system's cache cold.
"""

import logging
import os
import subprocess
import sys
import tempfile
import time
from functools import partial

from harness import Benchmark, installed


def first_step(side, name, cache):
    """What the process does."""
    import jax
    from workloads import workload

    logging.getLogger("jaxspec").setLevel(logging.ERROR)
    if side != "jaxspec":
        jax.config.update("jax_compilation_cache_dir", cache)
        # By default programs that compile within a second are left out: all of these.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    work = workload(name, quick=True)
    data = work.data()
    if side == "jaxspec":
        from sides.estimator import Estimator

        Estimator(work, data, compilation_cache_dir=cache).train(steps=1)
    elif side == "hand-written loop":
        from sides.hand_written import fresh_state, train_step
        from workloads import batches_of

        step = jax.jit(train_step(work), donate_argnums=0)
        jax.block_until_ready(step(fresh_state(work), batches_of(work, data)[0]))
    else:
        from sides.keras_fit import Keras

        x, y = data
        Keras(work, (x[: work.batch], y[: work.batch]), 1).train()


def run(side, name, cache):
    """Seconds of a process."""
    began = time.perf_counter()
    command = [sys.executable, __file__, "--child", side, name, cache]
    subprocess.run(command, check=True, timeout=600)
    return time.perf_counter() - began


def cold(side, name):
    """With an empty cache."""
    with tempfile.TemporaryDirectory() as cache:
        return run(side, name, cache)


def main():
    benchmark = Benchmark(__doc__, rounds=3)
    names = ["jaxspec", "hand-written loop", *(["Keras"] if installed("keras") else [])]
    with tempfile.TemporaryDirectory() as root:
        for name in ("MLP", "transformer")[: benchmark.pick(2, 1)]:
            sides = {}
            for side in names:
                cache = os.path.join(root, f"{side} {name}")
                sides[f"{side}, cold"] = partial(cold, side, name)
                sides[f"{side}, warm"] = partial(run, side, name, cache)
            others = {f"{side}, {kind}": [f"{side}, {kind}"] for side in names[1:] for kind in ("cold", "warm")}
            pairs = [(f"jaxspec, {other.rpartition(', ')[2]}", other) for other in others]
            benchmark.compare(f"time to the first step, {name}", "s", sides, pairs=pairs, lower_is_better=True)
    benchmark.save()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        first_step(*sys.argv[2:])
    else:
        main()
