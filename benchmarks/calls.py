"""What a call costs that has almost nothing to do: evaluate and predict on one batch, again and again.

    python benchmarks/calls.py [--quick] [--rounds 31]

The tiny model, one batch of 8 examples, after a training in the same process. The whole call is timed.
"""

import dataclasses
import logging

from harness import Benchmark, installed, seconds
from sides import estimator
from sides.hand_written import HandWritten
from targets import HAND
from workloads import workload


def main():
    benchmark = Benchmark(__doc__, rounds=31)
    logging.getLogger("jaxspec").setLevel(logging.ERROR)
    work = dataclasses.replace(workload("tiny"), batches=1)
    data = work.data()
    ours, hand = estimator.Estimator(work, data, metric="accuracy"), HandWritten(work, data, 0)
    ours.train()
    calls = {
        "jaxspec, evaluate": ours.evaluate,
        "jaxspec, predict": lambda: list(ours.predict()),
        f"{HAND}, evaluate": hand.evaluate,
        f"{HAND}, predict": lambda: list(hand.predict()),
    }
    if installed("keras"):
        from sides import keras_fit

        model = keras_fit.Keras(work, data, 1, "accuracy")
        calls |= {"Keras, evaluate": model.evaluate, "Keras, predict": model.predict}
    sides = {name: lambda call=call: 1e3 * seconds(call) for name, call in calls.items()}
    benchmark.compare("a second call on one batch", "ms", sides, lower_is_better=True)
    benchmark.save()


if __name__ == "__main__":
    main()
