"""Examples a second of prediction, in batches and one by one: jaxspec, a hand-written loop, Keras on JAX.

    python benchmarks/predict.py [--quick] [--rounds 5] [--only tiny]

Ten probabilities for each example. Keras' `predict` returns the array of all; the others yield, from the batch before
while the device computes the next one.
"""

import dataclasses
import logging

from harness import Benchmark, installed, rate
from sides import estimator
from sides.hand_written import both_kinds
from targets import HAND, KERAS
from workloads import workload


def consume(predictions):
    """Reads all predictions."""
    for _ in predictions:
        pass


def main():
    benchmark = Benchmark(__doc__, rounds=5)
    logging.getLogger("jaxspec").setLevel(logging.ERROR)
    has_keras = installed("keras")
    for name, batches in (("MLP", 500), ("tiny", 2_000)):
        work = dataclasses.replace(workload(name), batches=benchmark.pick(batches, 10), passes=1)
        data = work.data()
        examples = work.batch * work.batches
        ours, by_hand = estimator.Estimator(work, data), both_kinds(work, data)
        in_batches = {"jaxspec": lambda ours=ours: consume(ours.predict())}
        in_batches |= {each: lambda side=side: consume(side.predict()) for each, side in by_hand.items()}
        one_by_one = {"jaxspec": lambda ours=ours: consume(ours.predict(one_by_one=True))}
        one_by_one |= {each: lambda side=side: consume(side.predict_one_by_one()) for each, side in by_hand.items()}
        theirs = {HAND: list(by_hand)}
        if has_keras:
            from sides import keras_fit

            models = keras_fit.settings(work, data)
            theirs[KERAS] = list(models)
            in_batches |= {each: model.predict for each, model in models.items()}
            one_by_one |= {each: lambda model=model: consume(model.predict()) for each, model in models.items()}
        for title, sides in (("predict in batches", in_batches), ("predict one by one", one_by_one)):
            if not benchmark.skips(f"{title}, {name}"):
                rates = {each: rate(run, examples) for each, run in sides.items()}
                benchmark.compare(f"{title}, {name}", "examples/s", rates, ours=["jaxspec"], theirs=theirs)
    benchmark.save()


if __name__ == "__main__":
    main()
