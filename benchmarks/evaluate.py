"""Batches a second of evaluation, with the same metrics on all sides: jaxspec, a hand-written loop, Keras on JAX.

    python benchmarks/evaluate.py [--quick] [--rounds 5] [--only AUC]

jaxspec computes metrics on the host, Keras its own on the device; the hand-written loop adds up the loss and the
right answers on the device, and has no AUC. AUC is that of "the class is an odd number", with 200 thresholds.
"""

import dataclasses
import logging

from harness import Benchmark, installed, rate
from sides import estimator
from sides.hand_written import both_kinds
from targets import HAND, KERAS
from workloads import workload


def main():
    benchmark = Benchmark(__doc__, rounds=5)
    logging.getLogger("jaxspec").setLevel(logging.ERROR)
    has_keras = installed("keras")
    for name, batches in (("MLP", 500), ("tiny", 2_000)):
        work = dataclasses.replace(workload(name), batches=benchmark.pick(batches, 10), passes=1)
        data = work.data()
        for metric in ("loss only", "accuracy", "AUC"):
            title = f"evaluate with {metric}, {name}"
            if benchmark.skips(title):
                continue
            sides = {"jaxspec": estimator.Estimator(work, data, metric=metric)}
            theirs = {}
            if metric == "accuracy":
                by_hand = both_kinds(work, data)
                sides |= by_hand
                theirs[HAND] = list(by_hand)
            if has_keras:
                from sides import keras_fit

                models = keras_fit.settings(work, data, metric)
                sides |= models
                theirs[KERAS] = list(models)
            rates = {each: rate(side.evaluate, work.batches) for each, side in sides.items()}
            benchmark.compare(title, "batches/s", rates, ours=["jaxspec"], theirs=theirs)
    benchmark.save()


if __name__ == "__main__":
    main()
