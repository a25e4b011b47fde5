"""Inputs at the edge: half precision, odd types and shapes, nothing at all, one class only, NaN."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from metrics_table import TABLE, THRESHOLDS, UNWEIGHTED, Row, assert_same, weights

from jaxspec import metrics

every_metric = pytest.mark.parametrize("row", TABLE, ids=str)
unweighted = pytest.mark.parametrize("row", UNWEIGHTED, ids=str)


def cast(batch: dict[str, Any], dtype: Any) -> dict[str, Any]:
    return {key: a.astype(dtype) if a.dtype.kind == "f" else a for key, a in batch.items()}


@every_metric
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_floats_of_any_precision_are_taken_as_they_are(row: Row, dtype: Any) -> None:
    half = cast(row.draw(np.random.default_rng(0), 20), dtype)
    kwargs = dict(row.kwargs)
    if "threshold" in kwargs:  # it is rounded to the dtype of the values
        kwargs["threshold"] = float(np.asarray(kwargs["threshold"], dtype))
    expected = getattr(metrics, row.name)(**cast(half, np.float64), **kwargs)
    assert_same(row(half).compute(), expected.compute(), rtol=1e-6)


@every_metric
def test_jax_arrays_and_lists_are_taken_too(row: Row) -> None:
    batch = row.draw(np.random.default_rng(1), 8)
    expected = row(batch).compute()
    assert_same(row({key: jnp.asarray(a) for key, a in batch.items()}).compute(), expected, rtol=1e-6)
    assert_same(row({key: a.tolist() for key, a in batch.items()}).compute(), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int32, np.float32, ml_dtypes.bfloat16, ml_dtypes.int4])
@pytest.mark.parametrize("row", [r for r in UNWEIGHTED if r.draw.__name__ in ("binary", "probabilities")], ids=str)
def test_binary_labels_of_any_type(row: Row, dtype: Any) -> None:
    batch = row.draw(np.random.default_rng(2), 20)
    assert_same(row({**batch, "labels": batch["labels"].astype(dtype)}).compute(), row(batch).compute())


@unweighted
@pytest.mark.parametrize("scalar", [0.5, np.float32(0.5), np.array(0.5), jnp.float32(0.5), 2, True])
def test_a_scalar_weight_counts_for_every_example(row: Row, scalar: Any) -> None:
    batch = row.draw(np.random.default_rng(3), 20)
    full = np.full(20, float(scalar))
    assert_same(row({**batch, "weights": scalar}).compute(), row({**batch, "weights": full}).compute())


@unweighted
def test_weights_of_every_shape_that_broadcasts(row: Row) -> None:
    rng = np.random.default_rng(4)
    batch, w = row.draw(rng, 20), weights(rng, 20)
    expected = row({**batch, "weights": w}).compute()
    assert_same(row({**batch, "weights": w[:, None]}).compute(), expected)
    assert_same(row({**batch, "weights": w.astype(ml_dtypes.bfloat16)}).compute(), expected)
    ones = row({**batch, "weights": np.ones(1)}).compute()
    assert_same(ones, row(batch).compute())


@unweighted
def test_an_example_of_weight_zero_does_not_count(row: Row) -> None:
    batch = row.draw(np.random.default_rng(5), 20)
    first = {key: a[:13] for key, a in batch.items()}
    assert_same(row({**batch, "weights": np.arange(20) < 13}).compute(), row(first).compute())


def test_weights_of_rows_and_of_entries() -> None:
    values = np.arange(6.0).reshape(2, 3)
    by_row = metrics.mean(values, weights=[1, 3]).compute()
    assert by_row == metrics.mean(values, weights=[[1], [3]]).compute() == (3 + 3 * 12) / 12
    assert metrics.mean(values, weights=[[1, 0, 2]]).compute() == (0 + 3 + 2 * (2 + 5)) / 6
    assert metrics.mean(5.0, weights=[2.0]).compute() == 5


NOTHING = {
    "auc": 0.0,
    "mean_cosine_distance": 1.0,
    "precision_at_k": math.nan,
    "recall_at_k": math.nan,
    "precision_at_top_k": math.nan,
    "recall_at_top_k": math.nan,
    "sparse_precision_at_k": math.nan,
}


@every_metric
def test_the_value_of_nothing_is_the_one_in_the_docstring(row: Row) -> None:
    value = row(row.draw(np.random.default_rng(6), 0)).compute()
    np.testing.assert_array_equal(value, np.full(np.shape(value), NOTHING.get(row.name, 0.0)))


@unweighted
def test_weights_that_are_all_zero_give_the_value_of_nothing(row: Row) -> None:
    rng = np.random.default_rng(7)
    value = row({**row.draw(rng, 9), "weights": np.zeros(9)}).compute()
    np.testing.assert_array_equal(value, row(row.draw(rng, 0)).compute())


SCORES = np.array([0.1, 0.4, 0.6, 0.9], np.float32)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (0, {"roc": 1.0, "pr": 0.0, "precision": 0.0, "recall": 0.0, "sensitivity": 0.0, "specificity": 1.0}),
        (1, {"roc": 0.0, "pr": 1.0, "precision": 1.0, "recall": 0.5, "sensitivity": 1.0, "specificity": 0.0}),
    ],
)
def test_one_class_only(label: int, expected: dict[str, float]) -> None:
    labels = np.full(4, label)
    actual = {
        "roc": metrics.auc(labels, SCORES),
        "pr": metrics.auc(labels, SCORES, curve="PR"),
        "precision": metrics.precision(labels, SCORES > 0.5),
        "recall": metrics.recall(labels, SCORES > 0.5),
        "sensitivity": metrics.sensitivity_at_specificity(labels, SCORES, 0.0),
        "specificity": metrics.specificity_at_sensitivity(labels, SCORES, 0.0),
    }
    for name, value in actual.items():
        np.testing.assert_allclose(value.compute(), expected[name], atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    "limits",
    [
        np.linspace(0, 1, 41),
        np.linspace(0, 1, 3000),
        [0.3],
        [0.5, 0.25, 0.5, 1.0, 1.0],
        [0.2, np.nextafter(np.float32(0.2), np.float32(1)), 0.7],
        [-3.0, -1e-7, 0.0, 1 + 1e-7, 5.0],
    ],
    ids=["even", "many", "one", "repeated", "neighbours", "outside"],
)
def test_bins_agree_with_float32_comparison_to_the_last_bit(limits: Any) -> None:
    limits = np.asarray(limits)
    near = limits.astype(np.float32)
    predictions = np.clip(
        np.concatenate([near, np.nextafter(near, np.float32(2)), np.nextafter(near, np.float32(-1))]), 0, 1
    )
    labels = np.arange(predictions.size) % 3 == 0
    positive = predictions[None] > near[:, None]
    expected = (positive & labels).sum(1), (positive & ~labels).sum(1), (~positive & labels).sum(1)
    for name, counts in zip(("true_positives", "false_positives", "false_negatives"), expected, strict=True):
        value = getattr(metrics, f"{name}_at_thresholds")(labels, predictions, limits)
        np.testing.assert_array_equal(value.compute(), counts)


def test_thresholds_keep_the_order_and_the_repetitions_given() -> None:
    value = metrics.recall_at_thresholds([1, 1, 1, 1], SCORES, thresholds=[0.5, 0.0, 0.95, 0.5])
    np.testing.assert_allclose(value.compute(), [0.5, 1.0, 0.0, 0.5], rtol=1e-6)


def test_more_examples_than_one_chunk_of_the_histogram() -> None:
    rng = np.random.default_rng(8)
    labels, predictions, w = rng.integers(0, 2, 200_000), rng.random(200_000), rng.random(200_000)
    value = metrics.true_positives_at_thresholds(labels, predictions, THRESHOLDS, weights=w).compute()
    positive = predictions.astype(np.float32) > np.array(THRESHOLDS, np.float32)[:, None]
    np.testing.assert_allclose(value, (positive * labels * w).sum(1), rtol=1e-10)


# How the labels of a row stand to its scores: against a plain sort.


def by_sorting(labels: np.ndarray, scores: np.ndarray, k: int) -> tuple[int, int, int]:
    """Hits, distinct predictions, distinct labels."""
    hits = relevant = 0
    for row, own in zip(labels, scores, strict=True):
        own = np.where(np.isnan(own), -np.inf, own)
        top = set(np.argsort(-own, kind="stable")[:k].tolist())
        hits += len(top & set(row.tolist()))
        relevant += len(set(row.tolist()))
    return hits, k * len(labels), relevant


@pytest.mark.parametrize("width", [1, 2, 9])
@pytest.mark.parametrize("k", [1, 2, 5, 12])
@pytest.mark.parametrize("levels", [2, 5, 1000])
@pytest.mark.parametrize("classes", [12, 200])
def test_ranks_of_labels_agree_with_sorting(width: int, k: int, levels: int, classes: int) -> None:
    rng = np.random.default_rng(width * 100 + k)
    labels = rng.integers(-1, classes, (50, width))
    scores = rng.integers(0, levels, (50, classes)).astype(np.float32)
    hits, retrieved, relevant = by_sorting(labels, scores, k)
    assert metrics.precision_at_k(labels, scores, k).compute() == hits / retrieved
    assert metrics.recall_at_k(labels, scores, k).compute() == hits / relevant
    top = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    assert metrics.precision_at_top_k(labels, top).compute() == hits / retrieved
    assert metrics.recall_at_top_k(labels, top).compute() == hits / relevant


def test_many_classes_need_more_than_sixteen_bits_to_count() -> None:
    scores = np.arange(70_000, dtype=np.float32)[None]
    assert metrics.recall_at_k([[0]], scores, k=5).compute() == 0
    assert metrics.recall_at_k([[69_996]], scores, k=5).compute() == 1


def test_a_nan_score_is_never_among_the_best() -> None:
    scores = np.array([[np.nan, 1.0, -np.inf]])
    assert metrics.recall_at_k([[0]], scores, k=2).compute() == 0
    assert metrics.recall_at_k([[2]], scores, k=2).compute() == 1
    assert metrics.average_precision_at_k([[1]], scores, k=2).compute() == 1
    assert metrics.average_precision_at_k([[-1, 2]], scores, k=3).compute() == 1 / 2


def test_padding_with_minus_one() -> None:
    scores = np.array([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    padded, repeated = np.array([[0, -1, -1], [2, 1, -1]]), np.array([[0, 0, 0], [2, 1, 1]])
    assert metrics.precision_at_k(padded, scores, 2).compute() == 3 / 4
    assert metrics.average_precision_at_k(padded, scores, 2).compute() == 1
    assert metrics.recall_at_k(repeated, scores, 2).compute() == 1
    assert metrics.recall_at_k(padded, scores, 2).compute() == 3 / 5  # each row misses its -1, once
    assert metrics.recall_at_k(padded, scores, 2, class_id=1).compute() == 1
    masked = np.ma.masked_equal(padded, -1)
    assert metrics.recall_at_k(masked, scores, 2).compute() == 1
    assert metrics.precision_at_k(masked, scores, 2).compute() == 3 / 4


def test_a_row_without_labels() -> None:
    scores = np.array([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    labels = np.ma.masked_equal([[-1], [2]], -1)
    assert metrics.recall_at_k(labels, scores, 1).compute() == 1
    assert metrics.precision_at_k(labels, scores, 1).compute() == 1 / 2
    assert math.isnan(metrics.average_precision_at_k(labels, scores, 1).compute())
    assert math.isnan(metrics.average_precision_at_k([[-1], [2]], scores, 1, weights=[0, 1]).compute())


def test_integers_do_not_wrap_round() -> None:
    labels, predictions = np.array([250, 0], np.uint8), np.array([0, 250], np.uint8)
    assert metrics.mean_absolute_error(labels, predictions).compute() == 250
    assert metrics.mean_squared_error(labels, predictions).compute() == 62500


def test_what_is_not_finite_passes_without_a_warning() -> None:
    bad = np.array([np.nan, np.inf, -np.inf, 1e38], np.float32)
    for fn in (metrics.mean_absolute_error, metrics.mean_squared_error, metrics.root_mean_squared_error):
        assert math.isnan(fn(bad, bad[::-1]).compute())
        assert math.isfinite(fn(np.float32([1e38]), np.float32([-1e38])).compute())
    assert math.isnan(metrics.mean(bad).merge(metrics.mean([-np.inf])).compute())
    assert math.isnan(metrics.mean_tensor(bad).merge(metrics.mean_tensor(bad[::-1])).compute()[1])
    assert math.isnan(metrics.mean_cosine_distance([bad], [bad], dim=1).compute())
    assert math.isnan(metrics.mean_relative_error(bad, bad, normalizer=np.zeros(4) + 1).compute())
    assert metrics.percentage_below(bad, 0.5).compute() == 1 / 4
    assert metrics.accuracy(np.array([0, 1]), np.array([np.nan, 1.0])).compute() == 0.5
    assert metrics.accuracy(np.float32([np.nan]), np.float32([np.nan])).compute() == 0
    assert math.isnan(metrics.root_mean_squared_error([1.0, 2.0], [0.0, 0.0], weights=[3.0, -1.0]).compute())


def test_negative_weights_in_a_mean_follow_tensorflow() -> None:
    assert metrics.mean([1.0, 2.0], weights=[3.0, -1.0]).compute() == 0.5
    assert metrics.mean([1.0, 2.0], weights=[1.0, -3.0]).compute() == 0


def test_strings_of_different_lengths_are_compared_whole() -> None:
    assert metrics.accuracy(np.array(["cat", "dog"]), np.array(["category", "dog"])).compute() == 0.5
    assert metrics.accuracy(np.array(["cat", "dog"], object), np.array(["cat", "dog"])).compute() == 1


def test_a_float32_threshold_is_met_exactly() -> None:
    assert metrics.percentage_below(np.float32([0.1, 0.0]), threshold=0.1).compute() == 0.5
    assert metrics.percentage_below(np.array([0.1, 0.0], ml_dtypes.bfloat16), threshold=0.1).compute() == 0.5
    assert metrics.percentage_below([0, 1, 2], threshold=0.5).compute() == 1 / 3
    assert metrics.percentage_below(np.array([0, 1, 2], ml_dtypes.int4), threshold=0.5).compute() == 1 / 3
    assert metrics.percentage_below(np.float16([0, 1, np.inf]), threshold=1e6).compute() == 2 / 3
