"""One row a metric: random examples for it. Tests that promise something of all metrics read this table."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxspec import metrics

Batch = dict[str, Any]
CLASSES = 6


@dataclasses.dataclass(frozen=True)
class Row:
    """A metric with arguments. `draw(rng, n)` makes n examples: arrays, cut along their first axis."""

    name: str
    draw: Callable[[np.random.Generator, int], Batch]
    kwargs: Batch = dataclasses.field(default_factory=dict)
    label: str = ""

    def __call__(self, batch: Batch) -> metrics.Metric:
        return getattr(metrics, self.name)(**batch, **self.kwargs)

    def __str__(self) -> str:
        return f"{self.name}-{self.label}" if self.label else self.name


def weights(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.integers(0, 5, n) / np.float32(4)  # zeros among them; exact in float32


def weighted(
    draw: Callable[[np.random.Generator, int], Batch],
) -> Callable[[np.random.Generator, int], Batch]:
    return lambda rng, n: {**draw(rng, n), "weights": weights(rng, n)}


def binary(rng: np.random.Generator, n: int) -> Batch:
    return {"labels": rng.integers(0, 2, n), "predictions": rng.integers(0, 2, n)}


def probabilities(rng: np.random.Generator, n: int) -> Batch:
    # Sixteenths: many predictions equal a threshold.
    return {"labels": rng.integers(0, 2, n), "predictions": (rng.integers(0, 17, n) / 16).astype(np.float32)}


def classes(rng: np.random.Generator, n: int) -> Batch:
    return {"labels": rng.integers(0, CLASSES, n), "predictions": rng.integers(0, CLASSES, n)}


def numbers(rng: np.random.Generator, n: int) -> Batch:
    return {key: rng.normal(size=n).astype(np.float32) for key in ("labels", "predictions")}


def values(rng: np.random.Generator, n: int) -> Batch:
    return {"values": rng.normal(size=(n, 3)).astype(np.float32)}


def ratios(rng: np.random.Generator, n: int) -> Batch:
    return {**numbers(rng, n), "normalizer": rng.integers(0, 3, n).astype(np.float32)}


def vectors(rng: np.random.Generator, n: int) -> Batch:
    return {key: rng.normal(size=(n, 4)).astype(np.float32) for key in ("labels", "predictions")}


def ranking(rng: np.random.Generator, n: int) -> Batch:
    labels = rng.integers(-1, CLASSES, (n, 3))
    labels[:, 0] = rng.integers(0, CLASSES, n)  # a row without labels would make average precision NaN
    return {"labels": labels, "predictions": rng.integers(0, 9, (n, CLASSES)).astype(np.float32)}  # with ties


def chosen(rng: np.random.Generator, n: int) -> Batch:
    return {"labels": rng.integers(-1, CLASSES, (n, 3)), "predictions_idx": rng.integers(0, CLASSES, (n, 2))}


THRESHOLDS = (0.75, 0.0, 0.5, 0.3, 1.0)
COUNTS = ("true_positives", "true_negatives", "false_positives", "false_negatives")

UNWEIGHTED = [
    *(Row(name, binary) for name in (*COUNTS, "precision", "recall")),
    *(
        Row(f"{name}_at_thresholds", probabilities, {"thresholds": THRESHOLDS})
        for name in (*COUNTS, "precision", "recall")
    ),
    Row("auc", probabilities),
    *(
        Row(
            "auc",
            probabilities,
            {"curve": "PR", "summation_method": method, "num_thresholds": 20},
            f"PR-{method}",
        )
        for method in ("trapezoidal", "careful_interpolation", "minoring", "majoring")
    ),
    Row("auc", probabilities, {"thresholds": THRESHOLDS}, "thresholds"),
    Row("sensitivity_at_specificity", probabilities, {"specificity": 0.6}),
    Row("specificity_at_sensitivity", probabilities, {"sensitivity": 0.6}),
    Row("accuracy", classes),
    Row("mean", values),
    Row("percentage_below", values, {"threshold": 0.1}),
    *(Row(f"{name}_error", numbers) for name in ("mean_absolute", "mean_squared", "root_mean_squared")),
    Row("mean_relative_error", ratios),
    Row("mean_cosine_distance", vectors, {"dim": 1}),
    Row("confusion_matrix", classes, {"num_classes": CLASSES}),
    Row("mean_iou", classes, {"num_classes": CLASSES}),
    Row("mean_per_class_accuracy", classes, {"num_classes": CLASSES}),
    Row("confusion_matrix", classes, {"num_classes": 70}, "large"),
    Row("mean_iou", classes, {"num_classes": 5000}, "large"),
    Row("mean_per_class_accuracy", classes, {"num_classes": 5000}, "large"),
    *(
        Row(f"{prefix}{name}", ranking, {"k": 3})
        for prefix, name in (
            ("", "precision_at_k"),
            ("", "recall_at_k"),
            ("", "average_precision_at_k"),
            ("sparse_", "precision_at_k"),
            ("sparse_", "average_precision_at_k"),
        )
    ),
    *(Row(f"{name}_at_k", ranking, {"k": 3, "class_id": 1}, "class") for name in ("precision", "recall")),
    *(Row(f"{name}_at_top_k", chosen) for name in ("precision", "recall")),
    *(Row(f"{name}_at_top_k", chosen, {"class_id": 1}, "class") for name in ("precision", "recall")),
]

# mean_tensor is not here: it has no axis of examples.
TABLE = [
    *UNWEIGHTED,
    *(
        dataclasses.replace(row, draw=weighted(row.draw), label=f"{row.label}-weighted".lstrip("-"))
        for row in UNWEIGHTED
    ),
]


def cut(batch: Batch, points: list[int]) -> list[Batch]:
    """The batch in pieces, cut at `points` (in any order; equal ones make empty pieces)."""
    size = len(next(iter(batch.values())))
    ends = [0, *sorted(min(p, size) for p in points), size]
    return [{key: array[a:b] for key, array in batch.items()} for a, b in itertools.pairwise(ends)]


def assert_same(actual: Any, expected: Any, rtol: float = 1e-12) -> None:
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=1e-13)
