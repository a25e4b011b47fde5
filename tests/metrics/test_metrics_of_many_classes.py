"""Metrics with more cells than a batch has entries."""

import pickle
import tracemalloc

import numpy as np
import pytest

from jaxspec import metrics

CLASSES = 1000
RNG = np.random.default_rng(0)


def batch(rows=128):
    return RNG.integers(0, CLASSES, rows), RNG.integers(0, CLASSES, rows)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_batch_takes_no_memory_of_the_size_of_the_matrix(weighted):
    value = metrics.confusion_matrix(*batch(), CLASSES)
    tracemalloc.start()
    try:
        for _ in range(10):
            value = value.merge(metrics.confusion_matrix(*batch(), CLASSES, RNG.random(128) if weighted else None))
        assert tracemalloc.get_traced_memory()[1] < 8 * CLASSES**2 / 50
    finally:
        tracemalloc.stop()


def test_the_entries_that_wait_are_bounded_and_all_count():
    cells, rows = 70 * 70, 64
    labels = np.arange(rows) % 70
    value = metrics.confusion_matrix(labels, labels, 70)
    for _ in range(2000):
        value = value.merge(metrics.confusion_matrix(labels, labels, 70))
        assert len(pickle.dumps(value)) < 4 * 8 * cells
    np.testing.assert_array_equal(value.compute(), np.diag(2001.0 * np.bincount(labels, minlength=70)))


def test_small_batches_of_a_large_matrix():
    value = metrics.confusion_matrix([0], [1], CLASSES)
    for _ in range(2500):
        value = value.merge(metrics.confusion_matrix([0], [1], CLASSES, weights=2))
    assert value.compute()[0, 1] == value.compute().sum() == 5001
