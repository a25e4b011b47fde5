"""collect: every example once, at the end, in order, for a function of the whole set."""

from __future__ import annotations

import functools
import pickle
from typing import Any

import jax
import numpy as np
import pytest
import sklearn.metrics

from jaxspec import metrics


def received(**tensors: np.ndarray) -> dict[str, np.ndarray]:
    return tensors


def test_fn_gets_every_example_once_in_order() -> None:
    rows = np.arange(20).reshape(10, 2)
    parts = [metrics.collect(received, x=rows[a:b], y=rows[a:b, 0]) for a, b in ((0, 4), (4, 4), (4, 5), (5, 10))]
    result = functools.reduce(lambda a, b: a.merge(b), parts).compute()
    np.testing.assert_array_equal(result["x"], rows)
    np.testing.assert_array_equal(result["y"], rows[:, 0])


def test_fn_is_called_once_at_the_end() -> None:
    calls = []

    def count(x: np.ndarray) -> int:
        calls.append(len(x))
        return len(x)

    value = metrics.collect(count, x=[1, 2]).merge(metrics.collect(count, x=[3]))
    assert calls == []
    assert value.compute() == 3
    assert calls == [3]


def test_merging_is_associative_and_keeps_order() -> None:
    a, b, c = (metrics.collect(received, x=[i]) for i in range(3))
    for value in (a.merge(b).merge(c), a.merge(b.merge(c))):
        assert value.compute()["x"].tolist() == [0, 1, 2]


def test_empty_is_the_identity_and_keeps_shape_and_dtype() -> None:
    value = metrics.collect(received, x=np.ones((3, 2), np.float32))
    nothing = value.empty().compute()["x"]
    assert nothing.shape == (0, 2)
    assert nothing.dtype == np.float32
    for merged in (value.merge(value.empty()), value.empty().merge(value)):
        np.testing.assert_array_equal(merged.compute()["x"], np.ones((3, 2)))
        assert merged.compute()["x"].dtype == np.float32


def test_it_flattens_to_one_array_a_tensor_and_back() -> None:
    here, there = metrics.collect(received, x=[1, 2], y=[3.0]), metrics.collect(received, x=[5], y=[6.0])
    there = there.merge(there)
    leaves, structure = jax.tree.flatten(there)
    assert [type(leaf) for leaf in leaves] == [np.ndarray, np.ndarray]
    assert structure == jax.tree.structure(here.empty())
    rebuilt = jax.tree.unflatten(jax.tree.structure(here.empty()), leaves)
    assert here.merge(rebuilt).compute()["x"].tolist() == [1, 2, 5, 5]
    jax.tree.map(lambda _: object(), there)
    assert pickle.loads(pickle.dumps(there)).compute()["y"].tolist() == [6, 6]


def test_later_changes_of_the_batch_are_not_seen() -> None:
    batch = np.zeros(3)
    value = metrics.collect(received, x=batch)
    batch[...] = 1
    np.testing.assert_array_equal(value.compute()["x"], np.zeros(3))
    with pytest.raises(ValueError, match="read-only"):
        value.compute()["x"][0] = 1


def test_a_lambda_or_partial_made_anew_at_each_batch() -> None:
    def metric_fn(x: Any) -> dict[str, metrics.Metric]:
        return {
            "lambda": metrics.collect(lambda x: x.max(), x=x),
            "partial": metrics.collect(functools.partial(np.quantile, q=0.5), a=x),
        }

    first, second = metric_fn([1, 7]), metric_fn([3])
    assert first["lambda"].merge(second["lambda"]).compute() == 7
    assert first["partial"].merge(second["partial"]).compute() == 3


def test_masked_arrays_keep_their_mask() -> None:
    values = [metrics.collect(received, x=np.ma.masked_equal(x, -1)) for x in ([1, -1], [-1, 2])]
    assert values[0].merge(values[1]).compute()["x"].tolist() == [1, None, None, 2]


def test_strings_and_whole_set_functions() -> None:
    words = [
        metrics.collect(sklearn.metrics.accuracy_score, y_true=t, y_pred=["a", "b"]) for t in (["a", "a"], ["a", "b"])
    ]
    assert words[0].merge(words[1]).compute() == 0.75
    longer = metrics.collect(received, x=["a"]).merge(metrics.collect(received, x=["abc"]))
    assert longer.compute()["x"].tolist() == ["a", "abc"]


def test_the_error_of_fn_comes_back_as_itself() -> None:
    value = metrics.collect(sklearn.metrics.roc_auc_score, y_true=[0, 1], y_score=[[1.0], [2.0], [3.0]])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        value.compute()


def test_a_tensor_may_be_named_fn() -> None:
    assert metrics.collect(received, fn=[1]).compute()["fn"].tolist() == [1]


def test_refused() -> None:
    with pytest.raises(TypeError, match="fn is 3; expected a function"):
        metrics.collect(3, x=[1])
    with pytest.raises(ValueError, match="no tensors; expected at least one"):
        metrics.collect(max)
    with pytest.raises(ValueError, match="x is a scalar; expected an array"):
        metrics.collect(max, x=1.0)
    with pytest.raises(ValueError, match=r"examples for max with examples for min; expected the same function"):
        metrics.collect(max, x=[1]).merge(metrics.collect(min, x=[1]))
    with pytest.raises(ValueError, match=r"cannot merge tensors \['x'\] with \['y'\]"):
        metrics.collect(max, x=[1]).merge(metrics.collect(max, y=[1]))
    with pytest.raises(ValueError, match=r"x has examples of shape \(2,\) in one batch and \(3,\) in another"):
        metrics.collect(max, x=[[1, 2]]).merge(metrics.collect(max, x=[[1, 2, 3]]))
