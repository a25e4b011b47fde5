"""What an export costs: calls a second of a loaded one, against `jax.jit` of the same function; writing and loading.

    python benchmarks/exports.py [--quick] [--rounds 7] [--only "batch 256"]

The limit is a direct call of the compiled function, on weights that are on the device. Both get NumPy arrays, and each
call is waited for.
"""

import dataclasses
import functools
import logging
import tempfile

import jax
from harness import Benchmark, rate, seconds
from sides import estimator
from workloads import workload

import jaxspec as js


def main():
    benchmark = Benchmark(__doc__, rounds=7)
    logging.getLogger("jaxspec").setLevel(logging.ERROR)
    for name in ("MLP", "transformer"):
        work = dataclasses.replace(workload(name, benchmark.quick), batches=2, passes=1)
        data = work.data()
        ours = estimator.Estimator(work, data)
        ours.train()
        with tempfile.TemporaryDirectory() as directory:
            measure(benchmark, name, work, ours.estimator, data[0], directory)
    benchmark.save()


def measure(benchmark, name, work, trained, x, directory):
    """The groups of one model."""
    receiver_fn = js.export.build_raw_serving_input_receiver_fn(x)
    export = functools.partial(trained.export_saved_model, directory, receiver_fn)
    path = export()
    loaded = js.export.load(path)
    variables = work.variables()
    direct = jax.jit(lambda variables, x: {"probabilities": jax.nn.softmax(work.logits(variables, x))})
    calls = benchmark.pick(1_000 if name == "MLP" else 20, 3)
    for rows in (1, 256):
        title = f"calls of an export, {name}, batch {rows}"
        if benchmark.skips(title):
            continue
        batch = x[:rows]
        sides = {
            "export.load": repeated(lambda batch=batch: loaded(input=batch), calls),
            "jax.jit, the limit": repeated(lambda batch=batch: direct(variables, batch), calls),
        }
        rates = {side: rate(run, calls) for side, run in sides.items()}
        benchmark.compare(title, "calls/s", rates, pairs=[("export.load", "jax.jit, the limit")])
    title = f"writing and loading an export, {name}"
    if not benchmark.skips(title):
        sides = {
            "export_saved_model": lambda: seconds(export),
            "export.load": lambda: seconds(lambda: js.export.load(path)),
            "export.load, and the first call": lambda: seconds(lambda: run_once(path, x[:256])),
        }
        benchmark.compare(title, "s", sides, lower_is_better=True)


def repeated(call, count):
    """A function that makes the calls one after the other."""

    def run():
        for _ in range(count):
            jax.block_until_ready(call())

    return run


def run_once(path, batch):
    """Loads an export and calls it."""
    jax.block_until_ready(js.export.load(path)(input=batch))


if __name__ == "__main__":
    main()
