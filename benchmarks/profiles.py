"""Where the host's time goes: the functions that the calling thread spends most time in.

    python benchmarks/profiles.py [train evaluate predict call] [--workload tiny] [--top 25]

What is profiled is the second call, which compiles nothing. Other threads, such as that of the input, are not seen: for
them run a tool that samples all threads, such as `py-spy record -- python benchmarks/train.py --only tiny`.
"""

import argparse
import cProfile
import dataclasses
import logging
import pstats

from sides.estimator import Estimator
from workloads import NAMES, workload


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = ("train", "evaluate", "predict", "call")
    parser.add_argument("verbs", nargs="*", default=verbs, help=f"of {', '.join(verbs)}; call: evaluate on one batch")
    parser.add_argument("--workload", choices=NAMES, default="tiny")
    parser.add_argument("--resident", action="store_true", help="whether the data stay on the device")
    parser.add_argument("--top", type=int, default=25)
    options = parser.parse_args()
    logging.getLogger("jaxspec").setLevel(logging.ERROR)
    work = workload(options.workload)
    work = dataclasses.replace(work, batches=min(work.batches, 2_000), passes=1)
    for verb in options.verbs:
        size = dataclasses.replace(work, batches=1) if verb == "call" else work
        side = Estimator(size, size.data(), metric="accuracy and AUC", resident=options.resident)
        run = {
            "train": side.train,
            "evaluate": side.evaluate,
            "predict": lambda side=side: list(side.predict(one_by_one=True)),
            "call": side.evaluate,
        }[verb]
        run()
        profile = cProfile.Profile()
        profile.runcall(run)
        print(f"== {verb}, {size.name}, {size.batches} batches")
        pstats.Stats(profile).strip_dirs().sort_stats("tottime").print_stats(options.top)


if __name__ == "__main__":
    main()
