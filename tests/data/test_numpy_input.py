"""The batches of numpy_input_fn."""

import numpy as np
import pytest
from tiny_models import data

import jaxspec as js

X, Y = data(rows=24)


def numpy_batches(mode="eval", size=4, **kwargs):
    return [
        b if isinstance(b, np.ndarray) else b[0]
        for b in js.inputs.numpy_input_fn(X[:10], **kwargs)({"batch_size": size}, mode)
    ]


def test_numpy_input_fn_in_order_and_its_remainder():
    assert [len(b) for b in numpy_batches()] == [4, 4, 2]
    assert [len(b) for b in numpy_batches("train")] == [4, 4]
    np.testing.assert_array_equal(np.concatenate(numpy_batches()), X[:10])
    np.testing.assert_array_equal(np.concatenate(numpy_batches(num_epochs=2)), np.concatenate([X[:10], X[:10]]))
    assert [len(b) for b in numpy_batches(batch_size=7)] == [7, 3]


def test_numpy_input_fn_shuffles_each_epoch_anew_and_repeatably():
    rows = np.concatenate(numpy_batches(num_epochs=3, shuffle=True))
    for epoch in range(3):
        np.testing.assert_array_equal(np.sort(rows[10 * epoch : 10 * epoch + 10], 0), np.sort(X[:10], 0))
    assert not np.array_equal(rows[:10], rows[10:20])
    np.testing.assert_array_equal(rows, np.concatenate(numpy_batches(num_epochs=3, shuffle=True)))
    assert not np.array_equal(rows, np.concatenate(numpy_batches(num_epochs=3, shuffle=True, seed=1)))


def test_numpy_input_fn_refuses():
    with pytest.raises(ValueError, match=r"same number of examples, got 0: float32\[24,4\], 1: int32\[5\]"):
        js.inputs.numpy_input_fn(X, Y[:5])
    with pytest.raises(ValueError, match="num_epochs must be positive or None, got 0"):
        js.inputs.numpy_input_fn(X, num_epochs=0)
    with pytest.raises(ValueError, match="no batch size: pass batch_size="):
        js.inputs.numpy_input_fn(X)({}, "train")
