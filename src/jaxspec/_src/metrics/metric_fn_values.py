"""The values that metric_fn may return: each is made a metric, or refused with the key under which it was returned."""

import numpy as np

from jaxspec._src.metrics.arguments import as_array
from jaxspec._src.metrics.mean import mean
from jaxspec._src.metrics.metric import Mergeable, Metric


def as_metric(name: str, value: object, num_examples: int) -> Mergeable:
    """What metric_fn returned under `name` for a batch of `num_examples` examples, as a metric.

    Anything with `merge` and `compute` is returned as it is. A plain number is the mean of the batch: over the
    evaluation it is averaged with the number of examples as weight (a batch of none does not count, even with NaN).

    Raises:
      TypeError: for anything else, with the key and what to return instead.
    """
    # Asking a Protocol is slow, and nearly every value is of this library.
    if isinstance(value, Metric) or (isinstance(value, Mergeable) and not isinstance(value, type)):
        return value
    why = instead = ""
    if isinstance(value, type):
        instead = (
            f". For a metric class of clu or metrax: return an instance of it, {value.__name__}.from_model_output(...)"
        )
    elif hasattr(value, "compute"):  # flax.nnx.metrics and the like
        why = ", which computes but cannot merge (flax.nnx metrics change in place)"
        instead = (
            ". For nnx.metrics.Average return jaxspec.metrics.mean(values), for Accuracy jaxspec.metrics.accuracy(...)"
        )
    elif isinstance(value, tuple | list):
        instead = (
            ". A metric is one value now, without an update operation: "
            "where TensorFlow's metric function returned (value, update_op), return what jaxspec's returns"
        )
    elif (number := _as_number(name, value)) is not None:
        if not number.ndim:
            return mean(number if num_examples else 0.0, weights=num_examples)
        instead = (
            ". For an array: jaxspec.metrics.mean(x) averages its entries, "
            "mean_tensor(x) averages it over batches, collect(fn, x=x) passes all of it to fn"
        )
    raise TypeError(
        f"metric_fn returned {_describe(value)} under {name!r}{why}; expected what a function of jaxspec.metrics "
        "returns, another value with merge and compute (clu, metrax), or a number, which is averaged over "
        f"examples{instead}"
    )


def _as_number(name: str, value: object) -> np.ndarray | None:
    if callable(value) or value is None or isinstance(value, str | bytes | dict):
        return None
    try:
        return as_array(name, value)
    except TypeError:
        return None


def _describe(value: object) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple):
        return f"{type(value).__name__} of {np.asarray(value).dtype} with shape {shape}"
    return "None" if value is None else f"{type(value).__name__} {value!r:.60}"
