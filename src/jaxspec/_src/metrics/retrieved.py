"""Counts of labels among the k predicted classes of each row: the basis of precision and recall at k."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from jaxspec._src.metrics.arguments import Weights, as_array, as_count, as_weights
from jaxspec._src.metrics.metric import total
from jaxspec._src.metrics.ranking import best_ranks

# Marks a masked label, which is no label at all (-1 is one: a label that nothing can match).
_MASKED = np.iinfo(np.int64).min
_Hits: TypeAlias = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Counts in each row those of some classes `[N, L]` that are present (bool `[N, L]`) and were retrieved: `[N]`."""


class Retrieved(NamedTuple):
    """Weighted sums over the rows of a batch."""

    hits: np.float64
    """The labels that were retrieved."""
    retrieved: np.float64
    """The classes that were retrieved, without repetitions."""
    relevant: np.float64
    """The labels, without repetitions."""
    config: dict[str, int | None]
    """`k` and `class_id`. They change no result, but values that differ in them must not merge."""


class LabelRows(NamedTuple):
    """The labels of N rows as sets, and the weights of the rows."""

    ids: np.ndarray
    """int64 `[N, L]`, each row ascending."""
    distinct: np.ndarray
    """bool `[N, L]`, true for one of several equal labels, false for masked ones."""
    listed: np.ndarray
    """`[N]`, the numbers of labels by which average precision divides."""
    weights: np.ndarray | None
    """`[N]`, or None."""


def retrieved_by_scores(
    labels: ArrayLike, predictions: ArrayLike, k: int, class_id: int | None, weights: Weights
) -> Retrieved:
    """Retrieves the k best-scored classes of each row, or `class_id` alone if it is among them."""
    scores, count = checked_scores(predictions, k, least=0)
    rows = label_rows(labels, "predictions", scores, weights)
    flat = scores.reshape(-1, scores.shape[-1])

    def hits(ids: np.ndarray, present: np.ndarray) -> np.ndarray:
        return np.asarray((best_ranks(ids, present, flat, count) < count).sum(axis=1))

    return _retrieved(rows, hits, np.full(len(flat), count), class_id, k=count)


def retrieved_by_ids(
    labels: ArrayLike, predictions_idx: ArrayLike, class_id: int | None, weights: Weights
) -> Retrieved:
    """Retrieves the given classes of each row, or `class_id` alone if it is among them."""
    chosen = as_array("predictions_idx", predictions_idx)
    if chosen.dtype.kind not in "iu" or chosen.ndim == 0:
        raise TypeError(
            f"predictions_idx is an array of {chosen.dtype} with shape {chosen.shape}; "
            "expected classes, integers of shape [..., k]"
        )
    rows = label_rows(labels, "predictions_idx", chosen, weights)
    flat = np.sort(chosen.astype(np.int64, copy=False).reshape(-1, chosen.shape[-1]), axis=1)

    def hits(ids: np.ndarray, present: np.ndarray) -> np.ndarray:
        found = np.zeros(ids.shape, bool)
        for column in flat.T:
            found |= ids == column[:, None]
        return np.asarray((found & present).sum(axis=1))

    repeats = (flat[:, 1:] == flat[:, :-1]).sum(axis=1)
    return _retrieved(rows, hits, flat.shape[1] - repeats, class_id)


def _retrieved(rows: LabelRows, hits: _Hits, retrieved: np.ndarray, class_id: int | None, **config: int) -> Retrieved:
    """The sums over the rows. `retrieved` is `[N]`, the numbers of classes that were retrieved."""
    if class_id is None:
        found, relevant = hits(rows.ids, rows.distinct), rows.distinct.sum(axis=1)
    else:
        class_id = as_count("class_id", class_id, least=0)
        relevant = (rows.distinct & (rows.ids == class_id)).any(axis=1)
        column = np.full((len(rows.ids), 1), class_id)
        retrieved = hits(column, np.ones(column.shape, bool))
        found = retrieved * relevant
    w = rows.weights
    return Retrieved(total(found, w), total(retrieved, w), total(relevant, w), {**config, "class_id": class_id})


def checked_scores(predictions: ArrayLike, k: int, least: int) -> tuple[np.ndarray, int]:
    """Scores `[..., C]`, and k from `least` to C."""
    scores = as_array("predictions", predictions)
    if scores.ndim == 0:
        raise ValueError("predictions is a scalar; expected scores of shape [..., classes]")
    count = as_count("k", k, least)
    if count > scores.shape[-1]:
        raise ValueError(f"k is {count}; expected at most the number of classes, the last axis of {scores.shape}")
    return scores, count


def label_rows(
    labels: ArrayLike, name: str, predictions: np.ndarray, weights: Weights, classes: int | None = None
) -> LabelRows:
    """Labels `[..., L]` or `[...]` for the predictions `[..., C]`, the argument `name`, as rows.

    With `classes`, a label from there on becomes -1.
    """
    mask = np.ma.getmaskarray(labels) if isinstance(labels, np.ma.MaskedArray) else None
    array = as_array("labels", labels if mask is None else np.ma.getdata(labels))
    if array.dtype.kind not in "iu":
        raise TypeError(f"labels have dtype {array.dtype}; expected integers: classes, padded with -1")
    ids = array.astype(np.int64)
    if classes is not None:
        ids[ids >= classes] = -1
    if mask is not None:
        ids[mask] = _MASKED
    if predictions.ndim == ids.ndim + 1:
        ids = ids[..., None]
    if predictions.ndim == 0 or predictions.shape[:-1] != ids.shape[:-1]:
        raise ValueError(
            f"labels has shape {array.shape} and {name} has shape {predictions.shape}; "
            "expected the same shape but for the last axis, which labels may lack"
        )
    w = as_weights(weights, predictions.shape[:-1])
    ids = np.sort(ids.reshape(-1, ids.shape[-1]), axis=1)
    distinct = ids != _MASKED
    distinct[:, 1:] &= ids[:, 1:] != ids[:, :-1]
    # As in TensorFlow: padded rows count every label that is not padding, also repeated ones; a masked row is a set.
    listed = (ids >= 0 if mask is None else distinct).sum(axis=1)
    return LabelRows(ids, distinct, listed, None if w is None else w.reshape(-1))
