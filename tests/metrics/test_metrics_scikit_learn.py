"""Batches of 1, 3, 64 and all at once against scikit-learn on the whole set."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
from numpy.testing import assert_allclose

from jaxspec import metrics

SIZE = 500
in_batches = pytest.mark.parametrize("batch_size", [1, 3, 64, SIZE])


def evaluate(fn: Any, batch_size: int, **arrays: np.ndarray) -> Any:
    starts = range(0, SIZE, batch_size)
    values = [fn(**{key: a[i : i + batch_size] for key, a in arrays.items()}) for i in starts]
    return functools.reduce(lambda a, b: a.merge(b), values).compute()


@pytest.fixture(scope="module")
def data() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, SIZE)
    scores = np.clip(0.3 * labels + 0.7 * rng.random(SIZE), 0, 1).astype(np.float32)
    classes = rng.integers(0, 7, SIZE)
    logits = rng.normal(size=(SIZE, 7)).astype(np.float32)
    logits[np.arange(SIZE), classes] += 1
    weights = rng.random(SIZE).astype(np.float32)
    return {"labels": labels, "scores": scores, "classes": classes, "logits": logits, "weights": weights}


@in_batches
def test_precision_recall_and_f1(data: dict[str, np.ndarray], batch_size: int) -> None:
    y, guess, w = data["labels"], data["scores"] > 0.5, data["weights"]
    p = evaluate(metrics.precision, batch_size, labels=y, predictions=guess, weights=w)
    r = evaluate(metrics.recall, batch_size, labels=y, predictions=guess, weights=w)
    assert_allclose(p, sklearn.metrics.precision_score(y, guess, sample_weight=w), rtol=1e-6)
    assert_allclose(r, sklearn.metrics.recall_score(y, guess, sample_weight=w), rtol=1e-6)
    f1 = functools.partial(metrics.collect, sklearn.metrics.f1_score)
    assert_allclose(evaluate(f1, batch_size, y_true=y, y_pred=guess), sklearn.metrics.f1_score(y, guess), rtol=0)
    p = evaluate(metrics.precision, batch_size, labels=y, predictions=guess)
    r = evaluate(metrics.recall, batch_size, labels=y, predictions=guess)
    assert_allclose(2 * p * r / (p + r), sklearn.metrics.f1_score(y, guess), rtol=1e-12)


@in_batches
@pytest.mark.parametrize("num_thresholds", [20, 200])
def test_auc_at_its_stated_resolution(data: dict[str, np.ndarray], batch_size: int, num_thresholds: int) -> None:
    y, scores = data["labels"], data["scores"]
    fn = functools.partial(metrics.auc, num_thresholds=num_thresholds)
    actual = evaluate(fn, batch_size, labels=y, predictions=scores)
    bins = np.digitize(scores, np.linspace(0, 1, num_thresholds), right=True)
    together = (bins[y == 1][:, None] == bins[y == 0]).mean()
    assert abs(actual - sklearn.metrics.roc_auc_score(y, scores)) <= together / 2 + 1e-6
    assert together < 4 / num_thresholds  # or the bound says nothing


@in_batches
def test_auc_is_exact_where_thresholds_part_all_scores(data: dict[str, np.ndarray], batch_size: int) -> None:
    scores = (data["scores"] * 16).round() / 16
    fn = functools.partial(metrics.auc, num_thresholds=17)
    actual = evaluate(fn, batch_size, labels=data["labels"], predictions=scores, weights=data["weights"])
    expected = sklearn.metrics.roc_auc_score(data["labels"], scores, sample_weight=data["weights"])
    assert_allclose(actual, expected, atol=1e-6)


@in_batches
def test_auc_collected_is_exact(data: dict[str, np.ndarray], batch_size: int) -> None:
    fn = functools.partial(metrics.collect, sklearn.metrics.roc_auc_score)
    actual = evaluate(fn, batch_size, y_true=data["labels"], y_score=data["scores"])
    assert actual == sklearn.metrics.roc_auc_score(data["labels"], data["scores"])


@in_batches
def test_classes(data: dict[str, np.ndarray], batch_size: int) -> None:
    y, guess = data["classes"], data["logits"].argmax(-1)
    pair = {"labels": y, "predictions": guess}
    of = functools.partial
    matrix = evaluate(of(metrics.confusion_matrix, num_classes=7), batch_size, **pair)
    assert_allclose(matrix, sklearn.metrics.confusion_matrix(y, guess), rtol=0)
    iou = evaluate(of(metrics.mean_iou, num_classes=7), batch_size, **pair)
    assert_allclose(iou, sklearn.metrics.jaccard_score(y, guess, average="macro"), rtol=1e-12)
    per_class = evaluate(of(metrics.mean_per_class_accuracy, num_classes=7), batch_size, **pair)
    assert_allclose(per_class, sklearn.metrics.balanced_accuracy_score(y, guess), rtol=1e-12)
    accuracy = evaluate(metrics.accuracy, batch_size, **pair, weights=data["weights"])
    assert_allclose(accuracy, sklearn.metrics.accuracy_score(y, guess, sample_weight=data["weights"]), rtol=1e-6)


@in_batches
@pytest.mark.parametrize("k", [1, 3])
def test_recall_at_k_of_one_label_is_top_k_accuracy(data: dict[str, np.ndarray], batch_size: int, k: int) -> None:
    fn = functools.partial(metrics.recall_at_k, k=k)
    actual = evaluate(fn, batch_size, labels=data["classes"], predictions=data["logits"])
    assert_allclose(actual, sklearn.metrics.top_k_accuracy_score(data["classes"], data["logits"], k=k), rtol=1e-12)


@in_batches
def test_average_precision_at_all_classes_is_label_ranking_average_precision(
    data: dict[str, np.ndarray], batch_size: int
) -> None:
    rng = np.random.default_rng(1)
    present = rng.random((SIZE, 7)) < 0.4
    present[:, 2] = True
    labels = np.where(present, np.arange(7), -1)
    fn = functools.partial(metrics.average_precision_at_k, k=7)
    actual = evaluate(fn, batch_size, labels=labels, predictions=data["logits"])
    # In double precision: given float32, some versions of SciPy rank, and so divide, in float32.
    expected = sklearn.metrics.label_ranking_average_precision_score(present, data["logits"].astype(np.float64))
    assert_allclose(actual, expected, rtol=1e-12)


@in_batches
def test_errors_of_numbers(data: dict[str, np.ndarray], batch_size: int) -> None:
    y, p, w = data["logits"][:, 0], data["logits"][:, 1], data["weights"]
    arrays = {"labels": y, "predictions": p, "weights": w}
    for fn, oracle in (
        (metrics.mean_squared_error, sklearn.metrics.mean_squared_error),
        (metrics.mean_absolute_error, sklearn.metrics.mean_absolute_error),
        (metrics.root_mean_squared_error, sklearn.metrics.root_mean_squared_error),
    ):
        assert_allclose(evaluate(fn, batch_size, **arrays), oracle(y, p, sample_weight=w), rtol=1e-5)
