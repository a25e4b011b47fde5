"""The public names, and the docstrings: every example in them runs."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re

import pytest

from jaxspec import metrics

# tf.compat.v1.metrics, with the arguments left when the graph's are dropped.
TENSORFLOW = {
    "accuracy": "labels predictions weights",
    "auc": "labels predictions weights num_thresholds curve summation_method thresholds",
    "average_precision_at_k": "labels predictions k weights",
    "false_negatives": "labels predictions weights",
    "false_negatives_at_thresholds": "labels predictions thresholds weights",
    "false_positives": "labels predictions weights",
    "false_positives_at_thresholds": "labels predictions thresholds weights",
    "mean": "values weights",
    "mean_absolute_error": "labels predictions weights",
    "mean_cosine_distance": "labels predictions dim weights",
    "mean_iou": "labels predictions num_classes weights",
    "mean_per_class_accuracy": "labels predictions num_classes weights",
    "mean_relative_error": "labels predictions normalizer weights",
    "mean_squared_error": "labels predictions weights",
    "mean_tensor": "values weights",
    "percentage_below": "values threshold weights",
    "precision": "labels predictions weights",
    "precision_at_k": "labels predictions k class_id weights",
    "precision_at_thresholds": "labels predictions thresholds weights",
    "precision_at_top_k": "labels predictions_idx k class_id weights",
    "recall": "labels predictions weights",
    "recall_at_k": "labels predictions k class_id weights",
    "recall_at_thresholds": "labels predictions thresholds weights",
    "recall_at_top_k": "labels predictions_idx k class_id weights",
    "root_mean_squared_error": "labels predictions weights",
    "sensitivity_at_specificity": "labels predictions specificity weights num_thresholds",
    "sparse_average_precision_at_k": "labels predictions k weights",
    "sparse_precision_at_k": "labels predictions k class_id weights",
    "specificity_at_sensitivity": "labels predictions sensitivity weights num_thresholds",
    "true_negatives": "labels predictions weights",
    "true_negatives_at_thresholds": "labels predictions thresholds weights",
    "true_positives": "labels predictions weights",
    "true_positives_at_thresholds": "labels predictions thresholds weights",
}
OWN = {"Metric", "collect", "confusion_matrix"}


def test_the_public_names_are_tensorflows_and_three_more() -> None:
    assert {name for name in vars(metrics) if not name.startswith("_")} == {*TENSORFLOW, *OWN}


@pytest.mark.parametrize("name", TENSORFLOW)
def test_the_arguments_are_tensorflows_in_its_order(name: str) -> None:
    assert " ".join(inspect.signature(getattr(metrics, name)).parameters) == TENSORFLOW[name]


@pytest.mark.parametrize("name", [*TENSORFLOW, *sorted(OWN)])
def test_every_docstring_has_an_example(name: str) -> None:
    assert re.search(r"^\s*>>> ", inspect.getdoc(getattr(metrics, name)) or "", re.M)


PRIVATE = "jaxspec._src.metrics"
MODULES = [
    "jaxspec.metrics",
    *(m.name for m in pkgutil.iter_modules(importlib.import_module(PRIVATE).__path__, f"{PRIVATE}.")),
]


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module))
    assert result.failed == 0


def test_the_examples_are_found() -> None:
    finder = doctest.DocTestFinder()
    found = {t.name for m in MODULES for t in finder.find(importlib.import_module(m)) if t.examples}
    assert len(found) >= len(TENSORFLOW) + len(OWN)
