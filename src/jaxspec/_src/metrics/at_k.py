"""Precision, recall and average precision of the k best-scored classes of each row."""

import numpy as np
from numpy.typing import ArrayLike

from jaxspec._src.metrics.arguments import Weights
from jaxspec._src.metrics.metric import Floats, Metric, mean_of, sums_of
from jaxspec._src.metrics.ranking import best_ranks
from jaxspec._src.metrics.retrieved import checked_scores, label_rows, retrieved_by_ids, retrieved_by_scores


def precision_at_k(
    labels: ArrayLike, predictions: ArrayLike, k: int, class_id: int | None = None, weights: Weights = None
) -> Metric[float]:
    """Share of the k best-scored classes that are labels of their row: `tp / (tp + fp)`.

    Args:
      labels: integers `[..., L]`, the classes of each row as a set, padded with -1; or `[...]`, one class for each
        row. A label >= C is never retrieved. The masked entries of a masked array (`np.ma`) are left out, like the
        absent ones of TensorFlow's sparse labels.
      predictions: scores `[..., C]`. Of equal scores the lower class wins; NaN never wins.
      k: from 0 to C. (TensorFlow allows 0, too.)
      class_id: counts this class alone: the share of the rows with it among the k best that have it as a label.
      weights: of the rows: None (all 1), a scalar, or a shape that broadcasts to `[...]` without enlarging it; >= 0.

    Returns:
      A metric that computes a float; NaN if nothing counts (no rows, weights of 0, `class_id` never retrieved, k=0).

    >>> from jaxspec import metrics
    >>> scores = [[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]]
    >>> metrics.precision_at_k(labels=[[1, 2], [2, -1]], predictions=scores, k=2).compute()
    0.5
    """
    found = retrieved_by_scores(labels, predictions, k, class_id, weights)
    return sums_of("precision_at_k", _share, found.hits, found.retrieved, **found.config)


def precision_at_top_k(
    labels: ArrayLike,
    predictions_idx: ArrayLike,
    k: int | None = None,
    class_id: int | None = None,
    weights: Weights = None,
) -> Metric[float]:
    """`precision_at_k` for classes that were already chosen: `tp / (tp + fp)`.

    Args:
      labels, class_id, weights: as for `precision_at_k`.
      predictions_idx: integers `[..., k]`, the chosen classes of each row, as a set.
      k: has no effect, in TensorFlow as here: the last axis of `predictions_idx` decides.

    Returns:
      A metric that computes a float; NaN if nothing counts.

    >>> from jaxspec import metrics
    >>> metrics.precision_at_top_k(labels=[[1, 2], [2, -1]], predictions_idx=[[1, 2], [0, 1]]).compute()
    0.5
    """
    found = retrieved_by_ids(labels, predictions_idx, class_id, weights)
    return sums_of("precision_at_top_k", _share, found.hits, found.retrieved, **found.config)


def recall_at_k(
    labels: ArrayLike, predictions: ArrayLike, k: int, class_id: int | None = None, weights: Weights = None
) -> Metric[float]:
    """Share of the labels that are among the k best-scored classes of their row: `tp / (tp + fn)`.

    Args:
      labels, predictions, k, class_id, weights: as for `precision_at_k`. As in TensorFlow, -1 in a row counts as one
        missed label of that row, however often it occurs (but not with `class_id`): if rows have different numbers
        of labels, pad them by repeating a label, or mask the array.

    Returns:
      A metric that computes a float; NaN if nothing counts (no rows, weights of 0, `class_id` never a label).

    >>> import numpy as np
    >>> from jaxspec import metrics
    >>> scores = [[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]]
    >>> labels = np.array([[1, 2], [0, -1]])
    >>> metrics.recall_at_k(labels, scores, k=2).compute()
    0.75
    >>> metrics.recall_at_k(np.ma.masked_equal(labels, -1), scores, k=2).compute()
    1.0
    """
    found = retrieved_by_scores(labels, predictions, k, class_id, weights)
    return sums_of("recall_at_k", _share, found.hits, found.relevant, **found.config)


def recall_at_top_k(
    labels: ArrayLike,
    predictions_idx: ArrayLike,
    k: int | None = None,
    class_id: int | None = None,
    weights: Weights = None,
) -> Metric[float]:
    """`recall_at_k` for classes that were already chosen: `tp / (tp + fn)`.

    Args:
      labels, class_id, weights: as for `recall_at_k` (-1 in a row counts as one missed label).
      predictions_idx: integers `[..., k]`, the chosen classes of each row, as a set.
      k: has no effect, in TensorFlow as here: the last axis of `predictions_idx` decides.

    Returns:
      A metric that computes a float; NaN if nothing counts.

    >>> from jaxspec import metrics
    >>> metrics.recall_at_top_k(labels=[[1, 2], [2, 0]], predictions_idx=[[1, 2], [0, 1]]).compute()
    0.75
    """
    found = retrieved_by_ids(labels, predictions_idx, class_id, weights)
    return sums_of("recall_at_top_k", _share, found.hits, found.relevant, **found.config)


def average_precision_at_k(labels: ArrayLike, predictions: ArrayLike, k: int, weights: Weights = None) -> Metric[float]:
    """Weighted mean over rows of the average precision of the k best-scored classes.

    For one row it is the sum of precision at i over those i in 1..k at which the i-th best class is a label, divided
    by `min(k, number of labels)`.

    Args:
      labels, predictions, weights: as for `precision_at_k`. A label that occurs twice in a row counts twice in the
        number of labels (but not in a masked array), and -1 does not count.
      k: from 1 to C.

    Returns:
      A metric that computes a float; 0.0 if the total weight is 0. For a row without labels it is 0 / 0: NaN for this
      batch and all batches that are merged with it, whatever the weight of the row. Leave such rows out.

    >>> from jaxspec import metrics
    >>> scores = [[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]]
    >>> metrics.average_precision_at_k(labels=[[1, 2], [1, -1]], predictions=scores, k=2).compute()
    0.75
    """
    scores, count = checked_scores(predictions, k, least=1)
    rows = label_rows(labels, "predictions", scores, weights, classes=scores.shape[-1])
    ranks = best_ranks(rows.ids, rows.distinct, scores.reshape(-1, scores.shape[-1]), count)
    # The j-th best label of a row (from 1) at rank r (from 0) was found with a precision of j / (r + 1).
    nth = np.arange(1, ranks.shape[1] + 1)
    precisions = np.where(ranks < count, nth / (ranks + 1), 0.0).sum(axis=1)
    with np.errstate(all="ignore"):
        average = precisions / np.minimum(rows.listed, count)
    return mean_of("average_precision_at_k", average, rows.weights, k=count)


def sparse_precision_at_k(
    labels: ArrayLike, predictions: ArrayLike, k: int, class_id: int | None = None, weights: Weights = None
) -> Metric[float]:
    """The old name of `precision_at_k`.

    >>> from jaxspec import metrics
    >>> metrics.sparse_precision_at_k(labels=[1], predictions=[[0.1, 0.7, 0.2]], k=1).compute()
    1.0
    """
    return precision_at_k(labels, predictions, k, class_id, weights)


def sparse_average_precision_at_k(
    labels: ArrayLike, predictions: ArrayLike, k: int, weights: Weights = None
) -> Metric[float]:
    """The old name of `average_precision_at_k`.

    >>> from jaxspec import metrics
    >>> metrics.sparse_average_precision_at_k(labels=[2], predictions=[[0.1, 0.7, 0.2]], k=2).compute()
    0.5
    """
    return average_precision_at_k(labels, predictions, k, weights)


def _share(part: Floats, whole: Floats, **config: object) -> Floats:
    return part / whole
