"""What metric_fn may return under a key, made into something that merges and computes."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxspec._src.metrics.inputs import as_array
from jaxspec._src.metrics.mean import mean, mean_or_zero
from jaxspec._src.metrics.metric import sums_of


@runtime_checkable
class Mergeable(Protocol):
    """Ours, or a foreign metric (clu, metrax): it merges its own way."""

    def merge(self, other: Any) -> Any: ...

    def compute(self) -> Any: ...


def as_metric(name: str, value: Any, num_examples: int) -> Mergeable:
    """What metric_fn returned under `name` for a batch of `num_examples` examples, as a metric.

    Anything with `merge` and `compute` stays itself. A plain number is the batch's mean: over the evaluation
    it is averaged with the number of examples as weight (a batch of none does not count, even with NaN).

    Raises:
      TypeError: for anything else, with the key and what to return instead.
    """
    if isinstance(value, Mergeable) and not isinstance(value, type):
        return value  # before a sentence about it is made: this is done at every batch
    expected = (
        "expected what a function of jaxspec.metrics returns, another value with merge and compute "
        "(clu, metrax), or a number, which is averaged over examples"
    )
    problem = f"metric_fn returned {_describe(value)} under {name!r}"
    if isinstance(value, type):
        raise TypeError(
            f"{problem}; {expected}. For a metric class of clu or metrax: return an instance of it, "
            f"{value.__name__}.from_model_output(...)"
        )
    if hasattr(value, "compute"):  # flax.nnx.metrics and their like
        raise TypeError(
            f"{problem}, which computes but cannot merge (flax.nnx metrics change in place); {expected}. "
            "For nnx.metrics.Average return jaxspec.metrics.mean(values), "
            "for Accuracy jaxspec.metrics.accuracy(...)"
        )
    if isinstance(value, tuple | list):
        raise TypeError(
            f"{problem}; {expected}. A metric is one value now, without an update operation: "
            "where TensorFlow's metric function returned (value, update_op), return what jaxspec's returns"
        )
    if callable(value) or value is None or isinstance(value, str | bytes | dict):
        raise TypeError(f"{problem}; {expected}")
    try:
        number = as_array(name, value)
    except TypeError:
        raise TypeError(f"{problem}; {expected}") from None
    if number.ndim:
        raise TypeError(
            f"{problem}; {expected}. For an array: jaxspec.metrics.mean(x) averages its entries, "
            "mean_tensor(x) averages it over batches, collect(fn, x=x) hands all of it to fn"
        )
    return mean(number, weights=num_examples) if num_examples else sums_of("mean", mean_or_zero, 0.0, 0.0)


def _describe(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple):
        return f"{type(value).__name__} of {np.dtype(value.dtype)} with shape {shape}"
    return "None" if value is None else f"{type(value).__name__} {value!r:.60}"
