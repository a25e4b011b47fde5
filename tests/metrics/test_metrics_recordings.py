"""What TensorFlow 2.15 computed, case by case: `metrics.json`, read by `oracle_read`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import oracle_read
import pytest

from jaxspec import metrics

HERE = Path(__file__).parent


CASES = {case["name"]: case for case in oracle_read.load(HERE / "metrics.json")["cases"]}

# TensorFlow refuses by accident: an AttributeError, for it asks a Python number for its shape. We take it.
ACCEPTED_HERE = {"mean_iou/weights_scalar", "mean_per_class_accuracy/weights_scalar"}
# The update returns something else than the value.
OTHER_UPDATE = {"mean_iou", "mean_per_class_accuracy"}

BUILTIN = {"ValueError": ValueError, "TypeError": TypeError, "InvalidArgumentError": ValueError}


def labels_of(sparse: dict[str, Any]) -> np.ma.MaskedArray:
    """Sparse labels as a masked array: its masked entries are no labels, so rows may be empty."""
    padded = oracle_read.sparse_to_padded(sparse)
    sizes = np.bincount(sparse["sparse"]["indices"][:, 0], minlength=len(padded))
    return np.ma.masked_array(padded, mask=np.arange(padded.shape[1]) >= sizes[:, None])


def call(case: dict[str, Any], batch: dict[str, Any]) -> metrics.Metric:
    arrays = {key: labels_of(value) if oracle_read.is_sparse(value) else value for key, value in batch.items()}
    return getattr(metrics, case["metric"])(**arrays, **case["kwargs"])


def assert_value(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-6)
    assert np.shape(actual) == np.shape(expected)


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if "raises" not in case["expect"]])
def test_value_after_every_batch(name: str) -> None:
    case = CASES[name]
    values = [call(case, batch) for batch in case["batches"]]
    assert_value(values[0].empty().compute(), case["expect"]["initial_value"])
    merged = values[0].empty()
    for i, value in enumerate(values):
        merged = merged.merge(value)
        assert_value(merged.compute(), case["expect"]["values"][i])
        if case["metric"] not in OTHER_UPDATE:
            assert_value(merged.compute(), case["expect"]["updates"][i])


IOU = [n for n, c in CASES.items() if c["metric"] == "mean_iou" and "raises" not in c["expect"]]


@pytest.mark.parametrize("name", IOU)
def test_update_of_mean_iou_is_the_confusion_matrix(name: str) -> None:
    case = CASES[name]
    values = [metrics.confusion_matrix(**batch, **case["kwargs"]) for batch in case["batches"]]
    for i, expected in enumerate(case["expect"]["updates"]):
        assert_value(merge(values[: i + 1]).compute(), expected)


def merge(values: list[metrics.Metric]) -> metrics.Metric:
    return functools.reduce(lambda a, b: a.merge(b), values)


@pytest.mark.parametrize(
    "name", [n for n, case in CASES.items() if "raises" in case["expect"] and n not in ACCEPTED_HERE]
)
def test_refused_as_tensorflow_refuses(name: str) -> None:
    case = CASES[name]
    expect = case["expect"]
    before = [call(case, batch) for batch in case["batches"][: expect["raises"].get("batch", 0)]]
    for i in range(len(before)):
        assert_value(merge(before[: i + 1]).compute(), expect["values"][i])
    with pytest.raises(BUILTIN[expect["raises"]["type"]], match=r"(?s)expected"):
        call(case, case["batches"][len(before)])


@pytest.mark.parametrize("name", sorted(ACCEPTED_HERE))
def test_a_scalar_weight_that_tensorflow_trips_over_changes_nothing(name: str) -> None:
    case = CASES[name]
    unweighted = [getattr(metrics, case["metric"])(**b, num_classes=5) for b in case["batches"]]
    weighted = [call(case, b) for b in case["batches"]]
    np.testing.assert_allclose(merge(weighted).compute(), merge(unweighted).compute(), rtol=1e-12)


def test_every_case_is_read_by_one_of_these_tests() -> None:
    assert len(CASES) == 549
    assert {case["metric"] for case in CASES.values()} <= set(dir(metrics))
