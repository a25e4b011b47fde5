"""Steps a second of training: jaxspec against a hand-written loop, the limit, Flax's example, and Keras on JAX.

    python benchmarks/train.py [--quick] [--rounds 5] [--only MLP]

The MLP is 784-128-10 with batches of 128; tiny is 16-16-10 with batches of 8, so that overhead is all; the CNN has 28 x
28 images; the transformer has four layers. All sides train on the same examples. One device. "given" is a list of
batches, the others are shuffled; the hand-written loop and the limit are spared the shuffling.
"""

import logging

from harness import Benchmark, installed, rate
from sides import estimator
from sides.flax_example import FlaxExample
from sides.hand_written import Scan, both_kinds
from targets import HAND, KERAS, LIMIT
from workloads import NAMES, workload


def main():
    benchmark = Benchmark(__doc__, rounds=5)
    logging.getLogger("jaxspec").setLevel(logging.ERROR)
    has_keras = installed("keras")
    for name in NAMES:
        title = f"train, {name}"
        if benchmark.skips(title):
            continue
        work = workload(name, benchmark.quick)
        data = work.data()
        sides = {side: estimator.Estimator(work, data, **kind) for side, kind in estimator.inputs().items()}
        ours = list(sides)
        by_hand = both_kinds(work, data)
        others = {LIMIT: Scan(work, data), "Flax's example": FlaxExample(work, data)}
        sides |= by_hand | others
        theirs = {HAND: list(by_hand)} | {each: [each] for each in others}
        if has_keras:
            from sides import keras_fit

            models = keras_fit.settings(work, data)
            sides |= models
            theirs[KERAS] = list(models)
        rates = {each: rate(side.train, work.steps) for each, side in sides.items()}
        benchmark.compare(title, "steps/s", rates, ours=ours, theirs=theirs)
    benchmark.save()


if __name__ == "__main__":
    main()
