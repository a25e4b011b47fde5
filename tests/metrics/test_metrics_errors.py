"""Bad input: which argument, what was got, what was expected."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from metrics_table import TABLE, Row

from jaxspec import metrics

Y, P = [0, 1, 1], [0.2, 0.4, 0.9]
SCORES = np.zeros((3, 4))


REFUSED: list[tuple[str, dict[str, Any], type[Exception], list[str]]] = [
    (
        "accuracy",
        {"labels": [1, 2], "predictions": [1, 2, 3]},
        ValueError,
        ["labels", "(2,)", "predictions", "(3,)"],
    ),
    ("accuracy", {"labels": ["a"], "predictions": [1]}, TypeError, ["labels", "predictions", "int64"]),
    (
        "accuracy",
        {"labels": ["a"], "predictions": [b"a"]},
        TypeError,
        ["labels", "<U1", "predictions", "|S1"],
    ),
    ("mean", {"values": ["a"]}, TypeError, ["values", "<U1", "numbers"]),
    ("mean", {"values": [1j]}, TypeError, ["values", "complex128"]),
    (
        "mean",
        {"values": np.ma.masked_array([1, 2], mask=[1, 0])},
        TypeError,
        ["values", "masked", "weights=~mask"],
    ),
    ("mean", {"values": np.ones((2, 3)), "weights": np.ones(3)}, ValueError, ["weights", "(3,)", "(2, 3)"]),
    (
        "mean",
        {"values": np.ones((2, 1)), "weights": np.ones((2, 3))},
        ValueError,
        ["weights", "(2, 3)", "(2, 1)"],
    ),
    (
        "mean",
        {"values": np.ones((2, 3, 4)), "weights": np.ones(2)},
        ValueError,
        ["weights", "(2,)", "(2, 3, 4)"],
    ),
    (
        "percentage_below",
        {"values": [1.0], "threshold": [1.0, 2.0]},
        ValueError,
        ["threshold", "(2,)", "one number"],
    ),
    ("mean_squared_error", {"labels": [[1.0, 2.0]], "predictions": [1.0]}, ValueError, ["(1, 2)", "(1,)"]),
    (
        "mean_relative_error",
        {"labels": [1.0], "predictions": [1.0], "normalizer": [1.0, 2.0]},
        ValueError,
        ["normalizer", "(2,)"],
    ),
    (
        "mean_cosine_distance",
        {"labels": [[1.0]], "predictions": [[1.0]], "dim": 2},
        ValueError,
        ["dim is 2", "(1, 1)"],
    ),
    (
        "precision",
        {"labels": Y, "predictions": Y, "weights": [1, -2, 1]},
        ValueError,
        ["weights", "-2", ">= 0"],
    ),
    (
        "auc",
        {"labels": Y, "predictions": [0.2, 1.5, -3.0]},
        ValueError,
        ["predictions", "-3.0", "1.5", "[0, 1]"],
    ),
    ("auc", {"labels": Y, "predictions": [0.2, np.nan, 0.5]}, ValueError, ["predictions", "nan", "[0, 1]"]),
    ("auc", {"labels": Y, "predictions": P, "weights": [1, -2, 1]}, ValueError, ["weights", "-2"]),
    (
        "auc",
        {"labels": Y, "predictions": P, "curve": "LIFT"},
        ValueError,
        ["curve", "'LIFT'", "'ROC'", "'PR'"],
    ),
    (
        "auc",
        {"labels": Y, "predictions": P, "summation_method": "simpson"},
        ValueError,
        ["summation_method", "'simpson'", "trapezoidal", "minoring"],
    ),
    (
        "auc",
        {"labels": Y, "predictions": P, "num_thresholds": 1},
        ValueError,
        ["num_thresholds is 1", ">= 2"],
    ),
    ("auc", {"labels": Y, "predictions": P, "num_thresholds": 2.5}, TypeError, ["num_thresholds", "2.5"]),
    (
        "auc",
        {"labels": Y, "predictions": P, "thresholds": [0.5, 1.5]},
        ValueError,
        ["thresholds", "1.5", "[0, 1]"],
    ),
    (
        "recall_at_thresholds",
        {"labels": Y, "predictions": P, "thresholds": []},
        ValueError,
        ["thresholds", "[]"],
    ),
    (
        "recall_at_thresholds",
        {"labels": Y, "predictions": P, "thresholds": 0.5},
        ValueError,
        ["thresholds", "0.5"],
    ),
    (
        "recall_at_thresholds",
        {"labels": Y, "predictions": P, "thresholds": [np.nan]},
        ValueError,
        ["thresholds", "nan", "finite"],
    ),
    (
        "recall_at_thresholds",
        {"labels": Y, "predictions": P[:2], "thresholds": [0.5]},
        ValueError,
        ["(3,)", "(2,)"],
    ),
    (
        "sensitivity_at_specificity",
        {"labels": Y, "predictions": P, "specificity": 1.5},
        ValueError,
        ["specificity is 1.5", "[0, 1]"],
    ),
    (
        "specificity_at_sensitivity",
        {"labels": Y, "predictions": P, "sensitivity": -0.5},
        ValueError,
        ["sensitivity is -0.5", "[0, 1]"],
    ),
    (
        "confusion_matrix",
        {"labels": Y, "predictions": [0, 1, 2], "num_classes": 2},
        ValueError,
        ["predictions", "0 to 2", "num_classes is 2"],
    ),
    (
        "mean_iou",
        {"labels": [-1, 1, 1], "predictions": Y, "num_classes": 2},
        ValueError,
        ["labels", "-1 to 1"],
    ),
    ("mean_iou", {"labels": Y, "predictions": Y, "num_classes": 0}, ValueError, ["num_classes is 0", ">= 1"]),
    (
        "mean_iou",
        {"labels": [[0], [1]], "predictions": [0, 1], "num_classes": 2},
        ValueError,
        ["(2, 1)", "(2,)"],
    ),
    (
        "mean_per_class_accuracy",
        {"labels": [0, 5, 1], "predictions": Y, "num_classes": 2},
        ValueError,
        ["labels", "0 to 5"],
    ),
    ("precision_at_k", {"labels": Y, "predictions": SCORES, "k": 5}, ValueError, ["k is 5", "(3, 4)"]),
    ("precision_at_k", {"labels": Y, "predictions": SCORES, "k": -1}, ValueError, ["k is -1", ">= 0"]),
    ("precision_at_k", {"labels": Y, "predictions": SCORES, "k": 1.5}, TypeError, ["k is 1.5", "integer"]),
    (
        "precision_at_k",
        {"labels": Y, "predictions": SCORES, "k": 1, "class_id": -1},
        ValueError,
        ["class_id is -1"],
    ),
    ("average_precision_at_k", {"labels": Y, "predictions": SCORES, "k": 0}, ValueError, ["k is 0", ">= 1"]),
    (
        "recall_at_k",
        {"labels": P, "predictions": SCORES, "k": 1},
        TypeError,
        ["labels", "float64", "integers"],
    ),
    (
        "recall_at_k",
        {"labels": [0, 1], "predictions": SCORES, "k": 1},
        ValueError,
        ["labels", "(2,)", "(3, 4)"],
    ),
    ("recall_at_k", {"labels": Y, "predictions": 1.0, "k": 1}, ValueError, ["predictions", "scalar"]),
    (
        "recall_at_k",
        {"labels": Y, "predictions": SCORES, "k": 1, "weights": [1, 2]},
        ValueError,
        ["weights", "(2,)"],
    ),
    ("recall_at_top_k", {"labels": Y, "predictions_idx": SCORES}, TypeError, ["predictions_idx", "float64"]),
]


@pytest.mark.parametrize(
    ("name", "kwargs", "kind", "parts"), REFUSED, ids=[f"{r[0]}-{i}" for i, r in enumerate(REFUSED)]
)
def test_refused(name: str, kwargs: dict[str, Any], kind: type[Exception], parts: list[str]) -> None:
    with pytest.raises(kind) as error:
        getattr(metrics, name)(**kwargs)
    assert type(error.value) is kind
    for part in [*parts, "expected"] if "masked" not in parts else parts:
        assert part in str(error.value)


WITH_CLASSES = [r for r in TABLE if "num_classes" in r.kwargs]


@pytest.mark.parametrize("row", WITH_CLASSES, ids=str)
def test_merging_with_another_number_of_classes(row: Row) -> None:
    batch = row.draw(np.random.default_rng(0), 5)
    other = getattr(metrics, row.name)(**batch, num_classes=9)
    with pytest.raises(ValueError, match=f"{row.name}: cannot merge"):
        row(batch).merge(other)


def test_merging_different_metrics() -> None:
    with pytest.raises(ValueError, match="cannot merge a value of precision with one of recall; expected the same"):
        metrics.precision(Y, Y).merge(metrics.recall(Y, Y))
    with pytest.raises(TypeError, match="precision: cannot merge with Collected"):
        metrics.precision(Y, Y).merge(metrics.collect(max, x=Y))
    with pytest.raises(TypeError, match="collect: cannot merge with Sums"):
        metrics.collect(max, x=Y).merge(metrics.precision(Y, Y))


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("auc", {}, {"num_thresholds": 100}),
        ("auc", {}, {"curve": "PR"}),
        ("auc", {}, {"summation_method": "minoring"}),
        ("recall_at_thresholds", {"thresholds": [0.5]}, {"thresholds": [0.4]}),
        ("recall_at_thresholds", {"thresholds": [0.5]}, {"thresholds": [0.5, 0.6]}),
        ("recall_at_thresholds", {"thresholds": [0.5, 0.6]}, {"thresholds": [0.6, 0.5]}),
        ("sensitivity_at_specificity", {"specificity": 0.5}, {"specificity": 0.6}),
    ],
)
def test_merging_different_thresholds(name: str, one: dict[str, Any], other: dict[str, Any]) -> None:
    fn = getattr(metrics, name)
    (key,) = other
    with pytest.raises(ValueError, match=rf"{name}: cannot merge .*thresholds|{name}: cannot merge {key}="):
        fn(Y, P, **one).merge(fn(Y, P, **other))


def test_merging_different_k() -> None:
    value = metrics.recall_at_k(Y, SCORES, k=1)
    with pytest.raises(
        ValueError, match=re.escape("recall_at_k: cannot merge k=1 with k=2; expected the same arguments")
    ):
        value.merge(metrics.recall_at_k(Y, SCORES, k=2))
    with pytest.raises(ValueError, match="class_id=None with class_id=1"):
        value.merge(metrics.recall_at_k(Y, SCORES, k=1, class_id=1))


def test_merging_tensors_of_different_shapes() -> None:
    with pytest.raises(ValueError, match=re.escape("mean_tensor: cannot merge a state of shapes [(2,), (2,)]")):
        metrics.mean_tensor([1.0, 2.0]).merge(metrics.mean_tensor([1.0]))
