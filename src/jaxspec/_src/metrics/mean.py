"""mean, mean_tensor, accuracy, percentage_below: weighted means over entries."""

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxspec._src.metrics.arguments import Weights, as_array, as_weights, labels_and_predictions, values_and_weights
from jaxspec._src.metrics.metric import Metric, mean_of, mean_or_zero, sums_of


def mean(values: ArrayLike, weights: Weights = None) -> Metric[float]:
    """Weighted mean of all entries: `sum(values * weights) / sum(weights)`.

    Args:
      values: numbers or booleans of any shape; a scalar counts as one entry.
      weights: None, a scalar, or a shape that broadcasts to that of `values` without enlarging it; `[B]` for values
        `[B, D]` is one weight for each row. Negative weights are allowed. None weighs all entries with 1, and for a
        scalar that model_fn returned for each shard it is the number of rows of each shard.

    Returns:
      A metric that computes a float: 0.0 if the total weight is 0 or below. NaN in `values` stays NaN, even with a
      weight of 0, as long as the total weight is positive.

    Unlike TensorFlow it adds up in float64.

    >>> from jaxspec import metrics
    >>> metrics.mean([1.0, 2.0, 6.0], weights=[1, 1, 2]).compute()
    3.75
    """
    return mean_of("mean", *values_and_weights(values, weights))


def mean_tensor(values: ArrayLike, weights: Weights = None) -> Metric[np.ndarray]:
    """Weighted mean over batches, entry by entry: each batch is one sample of a tensor.

    Args:
      values: numbers of any shape, the same in every batch. There is no batch axis.
      weights: as for `mean`.

    Returns:
      A metric that computes a float64 array of the shape of `values`: 0.0 wherever the total weight is 0 or below.

    The shape is part of the state. So if the last batch of an evaluation is smaller, the shape of `values` must not
    depend on the size of the batch, in TensorFlow as here.

    >>> from jaxspec import metrics
    >>> metrics.mean_tensor([1.0, 2.0]).merge(metrics.mean_tensor([3.0, 6.0])).compute().tolist()
    [2.0, 4.0]
    """
    array = as_array("values", values)
    w = np.asarray(as_weights(1 if weights is None else weights, array.shape, allow_negative=True))
    with np.errstate(all="ignore"):
        return sums_of("mean_tensor", mean_or_zero, np.multiply(array, w, dtype=np.float64), w)


def percentage_below(values: ArrayLike, threshold: float, weights: Weights = None) -> Metric[float]:
    """Weighted share of the entries with `values < threshold`, from 0 to 1 (not 100, in spite of the name).

    Args:
      values: numbers of any shape.
      threshold: a number. It is rounded to the dtype of `values` if that is floating: for float32 values 0.1 is
        float32(0.1), so that an equal entry is not below it. It must be the same in every batch.
      weights: as for `mean`.

    Returns:
      A metric that computes a float, 0.0 if the total weight is 0 or below.

    >>> from jaxspec import metrics
    >>> metrics.percentage_below([0.1, 0.5, 0.9, 0.2], threshold=0.5).compute()
    0.5
    """
    array, weights = values_and_weights(values, weights)
    if np.ndim(threshold) != 0:
        raise ValueError(f"threshold has shape {np.shape(threshold)}; expected one number")
    limit = limit_here = float(threshold)
    given = np.asarray(values).dtype
    if jnp.issubdtype(given, np.floating):
        with np.errstate(over="ignore"):  # everything finite is below a threshold beyond the largest float16
            limit_here = float(np.asarray(limit).astype(given))
    return mean_of("percentage_below", array < limit_here, weights, threshold=limit)


def accuracy(labels: ArrayLike, predictions: ArrayLike, weights: Weights = None) -> Metric[float]:
    """Weighted share of the entries with `predictions == labels`.

    Args:
      labels: classes of any shape: integers, booleans, floats or strings.
      predictions: classes, not scores (`np.argmax(logits, -1)`), of the same shape, up to a last axis of size 1.
        Numbers of another dtype are cast to the dtype of `labels`.
      weights: as for `mean`; `[B, 1]` for labels `[B]` is one weight for each example.

    Returns:
      A metric that computes a float, 0.0 if the total weight is 0 or below.

    >>> from jaxspec import metrics
    >>> metrics.accuracy(labels=[0, 1, 2, 3], predictions=[0, 1, 2, 0]).compute()
    0.75
    """
    truth, guess = labels_and_predictions(labels, predictions, text=True)
    numbers = [a.dtype.kind in "biuf" for a in (truth, guess)]
    if numbers[0] != numbers[1] or {truth.dtype.kind, guess.dtype.kind} == {"S", "U"}:
        raise TypeError(
            f"labels have dtype {truth.dtype} and predictions {guess.dtype}; "
            "expected numbers, text or bytes on both sides"
        )
    if all(numbers):
        with np.errstate(invalid="ignore"):
            guess = guess.astype(truth.dtype, copy=False)
    return mean_of("accuracy", np.asarray(truth == guess, bool), weights)
