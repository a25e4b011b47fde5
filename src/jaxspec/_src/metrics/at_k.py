"""Precision, recall and average precision of the k best-scored classes of each row."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxspec._src.metrics.inputs import as_array, as_count, as_weights, ratio_or_zero
from jaxspec._src.metrics.metric import Array, Floats, Metric, sums_of
from jaxspec._src.metrics.ranking import best_ranks

# Stands for a masked label, which is no label at all (-1 is: one that nothing can match).
_MISSING = np.iinfo(np.int64).min


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Labels of N rows as sets, and the weights of the rows.

    Attributes:
      ids: `[N, L]`, each row ascending.
      distinct: `[N, L]` bool, true at one of equal labels, false at missing ones.
      listed: `[N]`, the labels that average precision divides by.
      weights: `[N]`, or None.
    """

    ids: Array
    distinct: Array
    listed: Array
    weights: Array | None

    def total(self, per_row: Array) -> np.float64:
        with np.errstate(all="ignore"):
            if self.weights is None:
                return np.float64(per_row.sum(dtype=np.float64))
            return np.float64(np.multiply(per_row, self.weights, dtype=np.float64).sum())


def _rows_of(labels: Any, predictions: tuple[str, Array], weights: Any, classes: int | None = None) -> _Rows:
    """Labels as rows of ids. With `classes`, ids from there on are made -1."""
    name, scores = predictions
    masked = isinstance(labels, np.ma.MaskedArray)
    array = as_array("labels", np.ma.getdata(labels) if masked else labels)
    if array.dtype.kind not in "iu":
        raise TypeError(f"labels have dtype {array.dtype}; expected integers: classes, padded with -1")
    ids = array.astype(np.int64)
    if classes is not None:
        ids[ids >= classes] = -1
    if masked:
        ids[np.ma.getmaskarray(labels)] = _MISSING
    if scores.ndim == ids.ndim + 1:
        ids = ids[..., None]
    if scores.ndim == 0 or scores.shape[:-1] != ids.shape[:-1]:
        raise ValueError(
            f"labels has shape {array.shape} and {name} has shape {scores.shape}; "
            "expected the same shape but for the last axis, which labels may lack"
        )
    w = as_weights(weights, scores.shape[:-1])
    ids = np.sort(ids.reshape(-1, ids.shape[-1]), axis=1)
    distinct = ids != _MISSING
    distinct[:, 1:] &= ids[:, 1:] != ids[:, :-1]
    # Padded rows count every label that is not padding, repeated ones too; a masked row is a set. Both as in
    # TensorFlow.
    listed = (distinct if masked else ids >= 0).sum(axis=1)
    return _Rows(ids, distinct, listed, None if w is None else w.reshape(-1))


@dataclasses.dataclass(frozen=True)
class _Hits:
    """Sizes of sets, a row each: labels retrieved, all that was retrieved, all labels."""

    hits: Array
    retrieved: Array
    relevant: Array


def _scores(predictions: Any, k: Any, least: int) -> tuple[Array, int]:
    scores = as_array("predictions", predictions)
    if scores.ndim == 0:
        raise ValueError("predictions is a scalar; expected scores of shape [..., classes]")
    count = as_count("k", k, least)
    if count > scores.shape[-1]:
        raise ValueError(f"k is {count}; expected at most the number of classes, the last axis of {scores.shape}")
    return scores, count


def _hits_of_scores(rows: _Rows, scores: Array, k: int, class_id: int | None) -> _Hits:
    flat = scores.reshape(-1, scores.shape[-1])
    if class_id is None:
        hits = (best_ranks(rows.ids, rows.distinct, flat, k) < k).sum(axis=1)
        return _Hits(hits, np.full(len(flat), k), rows.distinct.sum(axis=1))
    wanted = np.full((len(flat), 1), class_id)
    retrieved = (best_ranks(wanted, np.ones(wanted.shape, bool), flat, k) < k).any(axis=1)
    return _hits_of_class(np.asarray(retrieved), _holds(rows, class_id))


def _hits_of_ids(rows: _Rows, predictions_idx: Array, class_id: int | None) -> _Hits:
    chosen = predictions_idx.reshape(-1, predictions_idx.shape[-1])
    if class_id is not None:
        return _hits_of_class(np.asarray((chosen == class_id).any(axis=1)), _holds(rows, class_id))
    found = np.zeros(rows.ids.shape, bool)
    for column in chosen.T:
        found |= rows.ids == column[:, None]
    ordered = np.sort(chosen, axis=1)
    repeats = (ordered[:, 1:] == ordered[:, :-1]).sum(axis=1)
    return _Hits((found & rows.distinct).sum(axis=1), chosen.shape[1] - repeats, rows.distinct.sum(axis=1))


def _holds(rows: _Rows, class_id: int) -> Array:
    return np.asarray((rows.distinct & (rows.ids == class_id)).any(axis=1))


def _hits_of_class(retrieved: Array, relevant: Array) -> _Hits:
    return _Hits(retrieved & relevant, retrieved, relevant)


def _as_class(class_id: Any) -> int | None:
    return None if class_id is None else as_count("class_id", class_id, least=0)


def _as_ids(predictions_idx: Any) -> Array:
    ids = as_array("predictions_idx", predictions_idx)
    if ids.dtype.kind not in "iu" or ids.ndim == 0:
        raise TypeError(
            f"predictions_idx is an array of {ids.dtype} with shape {ids.shape}; "
            "expected classes, integers of shape [..., k]"
        )
    return ids.astype(np.int64, copy=False)


# The results need no configuration: `k` and `class_id` keep values that differ in them from merging.
def _share(hits: Floats, all_of_them: Floats, **_: object) -> Array:
    return hits / all_of_them


def _mean(total: Floats, weight: Floats, **_: object) -> Array:
    return ratio_or_zero(total, weight)


def precision_at_k(labels: Any, predictions: Any, k: int, class_id: int | None = None, weights: Any = None) -> Metric:
    """Share of the k best-scored classes that are labels of their row: `tp / (tp + fp)`.

    Args:
      labels: integers `[..., L]`, the classes of each row as a set, padded with -1; or `[...]`, one class a
        row. A label >= C is never retrieved. A masked array (`np.ma`) leaves its masked entries out, as
        TensorFlow's sparse labels do.
      predictions: scores `[..., C]`. Of equal scores the lower class wins; NaN never does.
      k: from 0 to C. Like TensorFlow it lets 0 pass.
      class_id: count this class alone: the share of rows with it among the k best that have it as a label.
      weights: of the rows: None (all 1), a scalar, or a shape that broadcasts to `[...]` without enlarging
        it; >= 0.

    Returns:
      A value that computes a float; NaN where nothing counts (no rows, weights of 0, `class_id` never
      retrieved, k=0).

    >>> from jaxspec import metrics
    >>> scores = [[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]]
    >>> metrics.precision_at_k(labels=[[1, 2], [2, -1]], predictions=scores, k=2).compute()
    0.5
    """
    scores, count = _scores(predictions, k, least=0)
    chosen = _as_class(class_id)
    rows = _rows_of(labels, ("predictions", scores), weights)
    found = _hits_of_scores(rows, scores, count, chosen)
    return sums_of(
        "precision_at_k",
        _share,
        rows.total(found.hits),
        rows.total(found.retrieved),
        k=count,
        class_id=chosen,
    )


def precision_at_top_k(
    labels: Any, predictions_idx: Any, k: int | None = None, class_id: int | None = None, weights: Any = None
) -> Metric:
    """`precision_at_k` of classes that were already chosen: `tp / (tp + fp)`.

    Args:
      labels, class_id, weights: as for `precision_at_k`.
      predictions_idx: integers `[..., k]`, the chosen classes of each row, as a set.
      k: only a name, in TensorFlow as here: the last axis of `predictions_idx` decides.

    Returns:
      A value that computes a float; NaN where nothing counts.

    >>> from jaxspec import metrics
    >>> metrics.precision_at_top_k(labels=[[1, 2], [2, -1]], predictions_idx=[[1, 2], [0, 1]]).compute()
    0.5
    """
    ids = _as_ids(predictions_idx)
    chosen = _as_class(class_id)
    rows = _rows_of(labels, ("predictions_idx", ids), weights)
    found = _hits_of_ids(rows, ids, chosen)
    return sums_of("precision_at_top_k", _share, rows.total(found.hits), rows.total(found.retrieved), class_id=chosen)


def recall_at_k(labels: Any, predictions: Any, k: int, class_id: int | None = None, weights: Any = None) -> Metric:
    """Share of the labels that are among the k best-scored classes of their row: `tp / (tp + fn)`.

    Args:
      labels, predictions, k, class_id, weights: as for `precision_at_k`. As in TensorFlow a -1 in a row
        counts as one missed label of that row, however often it stands there (not with `class_id`): pad by
        repeating a label, or mask the array, where rows have different numbers of labels.

    Returns:
      A value that computes a float; NaN where nothing counts (no rows, weights of 0, `class_id` never a
      label).

    >>> import numpy as np
    >>> from jaxspec import metrics
    >>> scores = [[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]]
    >>> labels = np.array([[1, 2], [0, -1]])
    >>> metrics.recall_at_k(labels, scores, k=2).compute()
    0.75
    >>> metrics.recall_at_k(np.ma.masked_equal(labels, -1), scores, k=2).compute()
    1.0
    """
    scores, count = _scores(predictions, k, least=0)
    chosen = _as_class(class_id)
    rows = _rows_of(labels, ("predictions", scores), weights)
    found = _hits_of_scores(rows, scores, count, chosen)
    return sums_of("recall_at_k", _share, rows.total(found.hits), rows.total(found.relevant), k=count, class_id=chosen)


def recall_at_top_k(
    labels: Any, predictions_idx: Any, k: int | None = None, class_id: int | None = None, weights: Any = None
) -> Metric:
    """`recall_at_k` of classes that were already chosen: `tp / (tp + fn)`.

    Args:
      labels, class_id, weights: as for `recall_at_k` (a -1 in a row counts as one missed label).
      predictions_idx: integers `[..., k]`, the chosen classes of each row, as a set.
      k: only a name, in TensorFlow as here: the last axis of `predictions_idx` decides.

    Returns:
      A value that computes a float; NaN where nothing counts.

    >>> from jaxspec import metrics
    >>> metrics.recall_at_top_k(labels=[[1, 2], [2, 0]], predictions_idx=[[1, 2], [0, 1]]).compute()
    0.75
    """
    ids = _as_ids(predictions_idx)
    chosen = _as_class(class_id)
    rows = _rows_of(labels, ("predictions_idx", ids), weights)
    found = _hits_of_ids(rows, ids, chosen)
    return sums_of("recall_at_top_k", _share, rows.total(found.hits), rows.total(found.relevant), class_id=chosen)


def average_precision_at_k(labels: Any, predictions: Any, k: int, weights: Any = None) -> Metric:
    """Weighted mean over rows of the average precision of the k best-scored classes.

    Of one row it is the sum of precision at i over those i in 1..k at which the i-th best class is a label,
    divided by `min(k, number of labels)`.

    Args:
      labels, predictions, weights: as for `precision_at_k`. A label that stands twice in a row counts twice
        in the number of labels (not in a masked array), and -1 does not count.
      k: from 1 to C.

    Returns:
      A value that computes a float; 0.0 where the total weight is 0. A row without labels is 0 / 0: it makes
      this batch and all that it is merged with NaN, whatever its weight. Leave such rows out.

    >>> from jaxspec import metrics
    >>> scores = [[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]]
    >>> metrics.average_precision_at_k(labels=[[1, 2], [1, -1]], predictions=scores, k=2).compute()
    0.75
    """
    scores, count = _scores(predictions, k, least=1)
    rows = _rows_of(labels, ("predictions", scores), weights, classes=scores.shape[-1])
    ranks = best_ranks(rows.ids, rows.distinct, scores.reshape(-1, scores.shape[-1]), count)
    # The j-th best label of a row (from 1) at rank r (from 0) was found with a precision of j / (r + 1).
    nth = np.arange(1, ranks.shape[1] + 1)
    precisions = np.where(ranks < count, nth / (ranks + 1), 0.0).sum(axis=1)
    with np.errstate(all="ignore"):
        average = precisions / np.minimum(rows.listed, count)
    return sums_of(
        "average_precision_at_k",
        _mean,
        rows.total(average),
        rows.total(np.ones(len(average))),
        k=count,
    )


def sparse_precision_at_k(
    labels: Any, predictions: Any, k: int, class_id: int | None = None, weights: Any = None
) -> Metric:
    """The old name of `precision_at_k`.

    >>> from jaxspec import metrics
    >>> metrics.sparse_precision_at_k(labels=[1], predictions=[[0.1, 0.7, 0.2]], k=1).compute()
    1.0
    """
    return precision_at_k(labels, predictions, k, class_id, weights)


def sparse_average_precision_at_k(labels: Any, predictions: Any, k: int, weights: Any = None) -> Metric:
    """The old name of `average_precision_at_k`.

    >>> from jaxspec import metrics
    >>> metrics.sparse_average_precision_at_k(labels=[2], predictions=[[0.1, 0.7, 0.2]], k=2).compute()
    0.5
    """
    return average_precision_at_k(labels, predictions, k, weights)
