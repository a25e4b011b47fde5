"""What metric_fn may return under a key, and what it may not."""

from __future__ import annotations

import functools
from typing import Any

import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec import metrics
from jaxspec._src.metrics.metric_fn_values import as_metric


def test_ours_is_returned_as_it_is() -> None:
    value = metrics.mean([1.0])
    assert as_metric("m", value, 1) is value
    collected = metrics.collect(max, x=[1])
    assert as_metric("m", collected, 1) is collected


class Unprintable(float):
    """A number whose repr is never needed."""

    def __repr__(self) -> str:
        raise AssertionError("a text was made for an error that is not raised")

    def merge(self, other: Unprintable) -> Unprintable:
        return self

    def compute(self) -> float:
        return self


class UnprintableNumber(float):
    __repr__ = Unprintable.__repr__


@pytest.mark.parametrize("kind", [Unprintable, UnprintableNumber])
def test_no_text_is_made_of_a_value_that_is_accepted(kind: type[float]) -> None:
    assert as_metric("m", kind(2.0), 3).compute() == 2.0


class Tally:
    """Somebody's metric: no base class of ours."""

    def __init__(self, n: int) -> None:
        self.n = n

    def merge(self, other: Tally) -> Tally:
        return Tally(self.n + other.n)

    def compute(self) -> int:
        return self.n


def test_anything_with_merge_and_compute_merges_its_own_way() -> None:
    a, b = Tally(1), Tally(2)
    assert as_metric("m", a, 1) is a
    assert as_metric("m", a, 1).merge(as_metric("m", b, 1)).compute() == 3


@pytest.mark.parametrize(
    "make", [float, np.float32, np.float64, np.array, jnp.float32, jnp.bfloat16, int, np.int64, bool]
)
def test_a_number_is_averaged_with_the_number_of_examples_as_weight(make: Any) -> None:
    values = [as_metric("m", make(v), n) for v, n in ((1.0, 30), (0.0, 10))]
    assert values[0].merge(values[1]).compute() == 0.75


def test_the_number_of_an_empty_batch_does_not_count() -> None:
    nothing = as_metric("m", float("nan"), 0)
    assert as_metric("m", 2.0, 3).merge(nothing).compute() == 2.0


def test_nan_of_a_batch_with_examples_is_kept() -> None:
    assert np.isnan(as_metric("m", float("nan"), 1).merge(as_metric("m", 1.0, 1)).compute())


REFUSED = [
    ((1.0, 2.0), ["a tuple of 2", "one value now", "update operation"]),
    ([1.0], ["a list of 1"]),
    (None, ["None"]),
    ("0.5", ["str '0.5'"]),
    ({"a": 1.0}, ["dict"]),
    (np.zeros(3), ["ndarray of float64 with shape (3,)", "mean_tensor", "collect"]),
    (jnp.zeros((2, 2)), ["float32 with shape (2, 2)"]),
    (1j, ["complex"]),
    (len, ["builtin_function_or_method"]),
    (Tally, ["the class Tally", "Tally.from_model_output"]),
    (flax.nnx.metrics.Average(), ["Average", "cannot merge", "jaxspec.metrics.mean"]),
    (flax.nnx.metrics.Accuracy(), ["Accuracy", "cannot merge", "jaxspec.metrics.accuracy"]),
    (object(), ["object"]),
]


@pytest.mark.parametrize(("value", "parts"), REFUSED, ids=[str(parts[0]) for _, parts in REFUSED])
def test_anything_else_is_refused_by_its_key(value: Any, parts: list[str]) -> None:
    with pytest.raises(TypeError) as error:
        as_metric("top5", value, 4)
    for part in (
        "metric_fn returned",
        "'top5'",
        "expected what a function of jaxspec.metrics returns",
        *parts,
    ):
        assert part in str(error.value)


def test_metrax_values_are_accepted_and_agree() -> None:
    metrax = pytest.importorskip("metrax")
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 200), rng.random(200).astype(np.float32)

    def metric_fn(labels: Any, scores: Any) -> dict[str, Any]:
        arrays = {"labels": jnp.asarray(labels), "predictions": jnp.asarray(scores)}
        return {
            "precision": metrax.Precision.from_model_output(**arrays),
            "recall": metrax.Recall.from_model_output(**arrays),
            "mse": metrax.MSE.from_model_output(**arrays),
            "auc": metrax.AUCROC.from_model_output(**arrays),
            "ours": metrics.accuracy(labels, scores > 0.5),
        }

    batches = [metric_fn(labels[i : i + 64], scores[i : i + 64]) for i in range(0, 200, 64)]
    values = {
        key: functools.reduce(lambda a, b: a.merge(b), [as_metric(key, b[key], 64) for b in batches])
        for key in batches[0]
    }
    guess = scores > 0.5
    expected = {
        "precision": metrics.precision(labels, guess),
        "recall": metrics.recall(labels, guess),
        "mse": metrics.mean_squared_error(labels, scores),
        "auc": metrics.auc(labels, scores),
        "ours": metrics.accuracy(labels, guess),
    }
    for key, value in values.items():
        np.testing.assert_allclose(value.compute(), expected[key].compute(), rtol=1e-4, err_msg=key)


def test_ours_and_foreign_values_are_pytrees() -> None:
    metrax = pytest.importorskip("metrax")
    foreign = metrax.Accuracy.from_model_output(predictions=jnp.array([1, 0]), labels=jnp.array([1, 1]))
    for value in (foreign, metrics.accuracy([1, 1], [1, 0])):
        leaves, structure = jax.tree.flatten(value)
        assert float(jax.tree.unflatten(structure, [np.asarray(x) for x in leaves]).compute()) == 0.5
