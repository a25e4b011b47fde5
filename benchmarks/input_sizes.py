"""What a batch of a shuffled numpy_input_fn costs on the host, for sets of 10,000 to 10,000,000 examples.

    python benchmarks/input_sizes.py [--quick] [--rounds 5]

Batches of 128 examples of 8 numbers and a label, taken from the iterator with nothing behind it. The first batch of an
epoch shuffles; its time is spread over the batches of the epoch.
"""

import logging

import numpy as np
from harness import Benchmark, seconds

import jaxspec as js

BATCH = 128


class Reader:
    """Reads the batches of a set: at most so many of one epoch."""

    def __init__(self, examples, most):
        rng = np.random.default_rng(0)
        x, y = rng.standard_normal((examples, 8), np.float32), rng.integers(0, 10, examples).astype(np.int32)
        self.input_fn = js.inputs.numpy_input_fn(x, y, batch_size=BATCH, num_epochs=None, shuffle=True)
        self.in_epoch = examples // BATCH
        self.read = min(most, self.in_epoch - 1)

    def microseconds(self):
        """Of a batch."""
        batches = iter(self.input_fn(params={}, mode="train"))
        first = seconds(lambda: next(batches))
        rest = seconds(lambda: [next(batches) for _ in range(self.read)] and None)
        return 1e6 * (first / self.in_epoch + rest / self.read)


def main():
    benchmark = Benchmark(__doc__, rounds=5)
    logging.getLogger("jaxspec").setLevel(logging.ERROR)
    sizes = [10**4, 10**5, 10**6, 10**7][: benchmark.pick(4, 2)]
    sides = {f"numpy_input_fn @ {size}": Reader(size, 2_000).microseconds for size in sizes}
    small, large = (f"numpy_input_fn @ {size}" for size in (sizes[0], sizes[-1]))
    benchmark.compare(
        "numpy_input_fn, shuffled",
        "us a batch",
        sides,
        ours=[large],
        theirs={small: [small]},
        lower_is_better=True,
        x="examples in the set",
    )
    benchmark.save()


if __name__ == "__main__":
    main()
