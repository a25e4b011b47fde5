"""What holds for every metric and all data: splits, orders, the identity, the trip to another host."""

from __future__ import annotations

import functools
import pickle

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metrics_table import TABLE, Row, assert_same, cut

from jaxspec import metrics

every_metric = pytest.mark.parametrize("row", TABLE, ids=str)
few = settings(max_examples=12, deadline=None, database=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(0, 40)
points = st.lists(st.integers(0, 40), max_size=6)


def merged(values: list[metrics.Metric]) -> metrics.Metric:
    return functools.reduce(lambda a, b: a.merge(b), values)


@every_metric
@few
@given(seeds, sizes, points)
def test_any_split_into_batches_gives_the_value_of_the_whole(row: Row, seed: int, size: int, points: list[int]) -> None:
    batch = row.draw(np.random.default_rng(seed), size)
    assert_same(merged([row(part) for part in cut(batch, points)]).compute(), row(batch).compute())


@every_metric
@few
@given(seeds, sizes, points, st.randoms(use_true_random=False))
def test_any_order_and_grouping_of_merges_gives_the_same_value(
    row: Row, seed: int, size: int, points: list[int], random: object
) -> None:
    batch = row.draw(np.random.default_rng(seed), size)
    values = [row(part) for part in cut(batch, points)]
    expected = merged(values).compute()
    while len(values) > 1:  # join two at random, in random order
        a = values.pop(random.randrange(len(values)))
        b = values.pop(random.randrange(len(values)))
        values.append(a.merge(b))
    assert_same(values[0].compute(), expected)


@every_metric
@pytest.mark.parametrize("size", [0, 1, 17])
def test_empty_is_the_identity_on_both_sides(row: Row, size: int) -> None:
    value = row(row.draw(np.random.default_rng(1), size))
    assert_same(value.merge(value.empty()).compute(), value.compute())
    assert_same(value.empty().merge(value).compute(), value.compute())


@every_metric
def test_an_empty_batch_is_the_identity(row: Row) -> None:
    rng = np.random.default_rng(2)
    nothing, value = row(row.draw(rng, 0)), row(row.draw(rng, 9))
    assert_same(nothing.compute(), nothing.empty().compute())
    assert_same(value.merge(nothing).compute(), value.compute())


@every_metric
def test_a_value_is_rebuilt_from_the_bytes_of_its_leaves(row: Row) -> None:
    rng = np.random.default_rng(3)
    here, there = row(row.draw(rng, 9)), row(row.draw(rng, 5))
    leaves, structure = jax.tree.flatten(there)
    assert all(type(leaf) is np.ndarray and leaf.dtype == np.float64 for leaf in leaves)
    assert structure == jax.tree.structure(here)
    assert hash(structure) == hash(jax.tree.structure(here))
    sent = [(leaf.tobytes(), leaf.shape) for leaf in leaves]
    # The receiver knows the structure from a value of its own, an empty one included.
    known = jax.tree.structure(here.empty())
    received = jax.tree.unflatten(known, [np.frombuffer(b).reshape(shape) for b, shape in sent])
    assert_same(here.merge(received).compute(), here.merge(there).compute(), rtol=0)


@every_metric
def test_a_value_pickles(row: Row) -> None:
    value = row(row.draw(np.random.default_rng(4), 9))
    copy = pickle.loads(pickle.dumps(value))
    assert_same(copy.merge(value).compute(), value.merge(value).compute(), rtol=0)


@every_metric
@pytest.mark.parametrize("leaf", [None, object(), 0, "text"])
def test_mapping_over_a_value_never_fails(row: Row, leaf: object) -> None:
    value = row(row.draw(np.random.default_rng(5), 3))
    jax.tree.map(lambda _: leaf, value)


@every_metric
def test_neither_merge_nor_compute_changes_a_value(row: Row) -> None:
    rng = np.random.default_rng(6)
    a, b = row(row.draw(rng, 9)), row(row.draw(rng, 9))
    before = [leaf.copy() for leaf in jax.tree.leaves((a, b))]
    a.merge(b).compute()
    a.compute()
    np.testing.assert_equal(jax.tree.leaves((a, b)), before)
    with pytest.raises(ValueError, match="read-only"):
        jax.tree.leaves(a)[0][...] = 0
    with pytest.raises(AttributeError):
        a.name = "other"


@every_metric
def test_the_callers_arrays_stay_writable_and_unread_later(row: Row) -> None:
    batch = row.draw(np.random.default_rng(7), 9)
    value = row(batch)
    before = value.compute()
    for array in batch.values():
        array[...] = 0
    assert_same(value.compute(), before, rtol=0)


@few
@given(seeds, st.integers(1, 6))
def test_mean_tensor_is_the_mean_over_batches_in_any_order(seed: int, batches: int) -> None:
    rng = np.random.default_rng(seed)
    tensors, weights = rng.normal(size=(batches, 2, 3)), rng.integers(0, 4, (batches, 2, 1))
    values = [metrics.mean_tensor(t, w) for t, w in zip(tensors, weights, strict=True)]
    total = weights.sum(0) * np.ones((2, 3))
    expected = np.where(total > 0, (tensors * weights).sum(0) / np.maximum(total, 1), 0)
    assert_same(merged(values).compute(), expected)
    assert_same(merged(values[::-1]).compute(), expected)
    assert_same(merged(values).merge(values[0].empty()).compute(), expected)


def test_mean_tensor_copies_its_batch() -> None:
    batch = np.ones(3)
    value = metrics.mean_tensor(batch)
    batch[...] = 5
    assert_same(value.compute(), [1, 1, 1])


def test_counts_are_exact_past_two_to_the_24() -> None:
    many = metrics.true_positives([1], [1], weights=2**24)
    assert many.merge(metrics.true_positives([1], [1])).compute() == 2**24 + 1
    at = metrics.true_positives_at_thresholds([1], [0.9], [0.5], weights=2**24)
    assert at.merge(metrics.true_positives_at_thresholds([1], [0.9], [0.5])).compute().tolist() == [2**24 + 1]
    mean = metrics.mean(1.0, weights=2**24).merge(metrics.mean(0.0))
    assert mean.compute() == 2**24 / (2**24 + 1)
