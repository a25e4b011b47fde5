"""jaxspec against the real TPUEstimator, that of TensorFlow 2.15, on the CPU: train, evaluate, predict.

    make bench-tf [ARGS="--quick"]

TensorFlow has an environment of its own, and so a process of its own, which waits while the other side is timed. The
MLP is 784-128-10, with batches of 128. Evaluation has accuracy and AUC on both sides, prediction is one by one.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"

import dataclasses
import logging
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from harness import Benchmark, rate
from sides import estimator
from targets import TENSORFLOW
from workloads import workload

ROOT = Path(__file__).parents[1]
PYTHON = os.environ.get("BENCH_TF_PYTHON", ROOT / ".venv-tf" / "bin" / "python")
DISTINCT_BATCHES = 50
"""TensorFlow keeps the examples in its graph, where they must be few."""


class RealEstimator:
    """The process with TensorFlow."""

    def __init__(self, work, data, steps, folder):
        path = Path(folder) / "data.npz"
        few = DISTINCT_BATCHES * work.batch
        np.savez(path, x=data[0][:few], y=data[1][:few], batch=work.batch, steps=steps)
        script = Path(__file__).parent / "sides" / "tensorflow_side.py"
        self.process = subprocess.Popen(
            [PYTHON, script, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.version = self.process.stdout.readline().strip()

    def per_second(self, verb):
        """Steps, batches, or examples."""
        print(verb, file=self.process.stdin, flush=True)
        return 1 / float(self.process.stdout.readline())


def consume(predictions):
    """Reads all predictions."""
    for _ in predictions:
        pass


def main():
    benchmark = Benchmark(__doc__, rounds=5)
    logging.getLogger("jaxspec").setLevel(logging.ERROR)
    work = dataclasses.replace(workload("MLP", benchmark.quick), passes=1)
    data, steps = work.data(), benchmark.pick(500, 40)
    ours = estimator.Estimator(work, data, metric="accuracy and AUC")
    with tempfile.TemporaryDirectory() as folder:
        theirs = RealEstimator(work, data, steps, folder)
        benchmark.add_version("tensorflow", theirs.version)
        try:
            for verb, title, unit, side in (
                ("train", "train beside TensorFlow, MLP", "steps/s", rate(lambda: ours.train(steps=steps), steps)),
                ("evaluate", "evaluate beside TensorFlow, MLP", "batches/s", rate(ours.evaluate, work.batches)),
                (
                    "predict",
                    "predict beside TensorFlow, MLP",
                    "examples/s",
                    rate(lambda: consume(ours.predict(one_by_one=True)), work.batch * work.batches),
                ),
            ):
                sides = {"jaxspec": side, TENSORFLOW: lambda verb=verb: theirs.per_second(verb)}
                benchmark.compare(title, unit, sides, pairs=[("jaxspec", TENSORFLOW)])
        finally:
            theirs.process.kill()
            theirs.process.communicate()
    benchmark.save()


if __name__ == "__main__":
    main()
