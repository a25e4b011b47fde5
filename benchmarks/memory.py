"""Whether memory grows: resident memory of the process over 100,000 steps in one call of train.

    python benchmarks/memory.py [--quick]

The tiny model. Compared are the medians of the samples between steps 1,000 and 10,000 and of those after the last tenth
began; the lines are what a hook sees every 1,000 steps. A host_call writes the loss of each step, as in real use.
"""

import gc
import logging
import statistics

import psutil
from harness import Benchmark
from sides import estimator
from workloads import workload

import jaxspec as js

EVERY = 1_000


class Watch(js.hooks.SessionRunHook):
    """Looks at the resident memory, in MB, every so many steps."""

    def __init__(self, every):
        self.every, self.seen = every, {}

    def next_step(self, global_step):
        return (global_step // self.every + 1) * self.every

    def after_run(self, run_context, run_values):
        if (made := run_context.last_step + 1) % self.every == 0:
            gc.collect()  # garbage that waits to be collected comes and goes
            self.seen[made] = psutil.Process().memory_info().rss / 1e6


def main():
    benchmark = Benchmark(__doc__, rounds=1)
    logging.getLogger("jaxspec").setLevel(logging.ERROR)
    steps, every = benchmark.pick(100, 1) * EVERY, benchmark.pick(EVERY, 50)
    work = workload("tiny", benchmark.quick)
    data = work.data()
    seen = {}
    for name, kind in estimator.inputs().items():
        watch = Watch(every)
        side = estimator.Estimator(work, data, host_call=lambda loss: js.summary.host_call(loss=loss), **kind)
        side.train(steps=steps, hooks=[watch])
        seen[name] = watch.seen
    lines = {f"{name} @ {step}": [mb] for name, by_step in seen.items() for step, mb in by_step.items()}
    growth = {}
    for name, by_step in seen.items():
        early = [mb for step, mb in by_step.items() if EVERY <= step <= steps / 10 or step == EVERY]
        late = [mb for step, mb in by_step.items() if step > 0.9 * steps]
        growth[name] = [statistics.median(late) - statistics.median(early)]
    benchmark.add("memory after 100,000 steps", "MB more than after 1,000", growth, lower_is_better=True)
    benchmark.add("resident memory while training", "MB", lines, lower_is_better=True, x="steps")
    benchmark.save()


if __name__ == "__main__":
    main()
