"""The memory of stacks: each call of an estimator writes to that of the call before, once nothing reads it."""

import types

import jax
import numpy as np
import pytest
from tiny_models import assert_trees_equal, batches, data, linear_init, linear_model_fn, run_config

import jaxspec as js
from jaxspec._src.data.batch import InputBatch
from jaxspec._src.data.stack_queue import StackQueue
from jaxspec._src.device import stack_buffers
from jaxspec._src.device.stack_placement import StackPlacement
from jaxspec._src.run import program_cache
from jaxspec._src.step.model import Model

ROWS, FEATURES = 8, 4
MOST_STACKS = 6
"""Filled, waiting (two), taken, in flight (two)."""
X, Y = data(rows=20 * ROWS, features=FEATURES)


@pytest.fixture
def made(monkeypatch):
    """The shapes of new arrays for stacks."""
    shapes, empty = [], stack_buffers._aligned

    def noting(shape, dtype):
        shapes.append(shape)
        return empty(shape, dtype)

    monkeypatch.setattr(stack_buffers, "_aligned", noting)
    return shapes


def estimator(model_dir, num_shards=2):
    return js.TPUEstimator(
        linear_model_fn,
        linear_init,
        model_dir=model_dir,
        config=run_config(every=3, num_shards=num_shards),
        train_batch_size=ROWS,
        eval_batch_size=ROWS,
        predict_batch_size=ROWS,
    )


def input_fn(x=X, y=Y, **kwargs):
    return js.inputs.numpy_input_fn(x, y, resident=False, **kwargs)


def input_of_batches(x, y):
    return lambda: batches(x, y, size=ROWS)


def logits(estimator, x):
    return np.stack([one["logits"] for one in estimator.predict(input_fn(x, None))])


CALLS = {
    "train": lambda one, x, y: one.train(input_fn(x, y, num_epochs=None, shuffle=True), steps=50) and None,
    "train on a generator": lambda one, x, y: one.train(input_of_batches(x, y), steps=20) and None,
    "evaluate": lambda one, x, y: one.evaluate(input_fn(x, y)),
    "predict": lambda one, x, y: logits(one, x),
}


@pytest.mark.parametrize("call", CALLS)
def test_calls_use_the_memory_of_those_before_and_compute_what_they_do_with_new_memory(
    tmp_path, made, monkeypatch, call
):
    monkeypatch.setattr(program_cache, "_STACK_BYTES", 3 * ROWS * (FEATURES + 1) * 4)  # three batches
    keeps, forgets = estimator(tmp_path / "keeps"), estimator(tmp_path / "forgets")
    for one in (keeps, forgets):
        one.train(input_fn(num_epochs=None), steps=1)
    made.clear()
    seen = []
    for turn in range(5):
        x, y = X * 0.5**turn, (Y + turn) % 3
        seen.append(CALLS[call](keeps, x, y))
    new = len(made)
    for turn in range(5):
        forgets._engine._input_memory.buffers = ()
        x, y = X * 0.5**turn, (Y + turn) % 3
        np.testing.assert_equal(seen[turn], CALLS[call](forgets, x, y))
    assert_trees_equal(keeps.variables(), forgets.variables())
    assert new <= MOST_STACKS * 2 < len(made) - new  # two arrays each


@pytest.mark.parametrize("num_shards", [1, 2])
def test_memory_fits_only_batches_of_the_same_kind(tmp_path, num_shards):
    one, other = (estimator(tmp_path / str(i), num_shards) for i in range(2))
    for each in (one, other):
        each.train(input_fn(num_epochs=None), steps=7)
    for dtype in (np.int32, np.int8, np.int32):
        other._engine._input_memory.buffers = ()
        assert one.evaluate(input_of_batches(X, Y.astype(dtype))) == other.evaluate(
            input_of_batches(X, Y.astype(dtype))
        )
    (fitting,) = {each.num_shards for each in one._engine._input_memory.buffers}
    assert fitting == num_shards


def test_a_prediction_that_is_left_early_does_not_spoil_another_call(tmp_path):
    one = estimator(tmp_path).train(input_fn(num_epochs=None), steps=3)
    expected = logits(one, X)
    left = one.predict(input_fn(X, None))
    first = next(left)["logits"]
    between = logits(one, X[::-1])  # while the first call goes on
    left.close()
    np.testing.assert_array_equal(logits(one, X), expected)
    np.testing.assert_array_equal(between[::-1], expected)
    np.testing.assert_array_equal(first, expected[0])


def test_a_stack_that_was_taken_in_part_is_not_spare():
    queue = StackQueue()
    queue.begin(2, StackPlacement(jax.devices()[:1]))
    for i in range(5):
        queue.put(InputBatch((np.full((4, 2), i), None), 4, None), full=True)
    assert queue.count_ready(1, 0) == 1
    taken = queue.take(1)
    assert len(queue.spare_buffers()) == 2  # the one that waits, and the one that is being filled
    queue.take(1).finish(taken.data)
    assert len(queue.spare_buffers()) == 3


@pytest.mark.parametrize(
    ("platform", "resident", "batches"), [("tpu", False, 4), ("tpu", True, 32), ("cpu", False, 32), ("cpu", True, 32)]
)
def test_a_stack_is_small_where_it_is_transferred(platform, resident, batches):
    devices = [types.SimpleNamespace(platform=platform)]
    programs = program_cache.Programs(Model(linear_model_fn, {}), devices, devices, loop_steps=None)
    infeed = types.SimpleNamespace(resident=resident, bytes_in_stack=1 << 20)
    made = program_cache.ModePrograms(*[None] * len(program_cache.ModePrograms._fields))
    assert programs._for_input(made, infeed).capacity == batches


def test_after_an_error_of_a_device_nothing_is_spare(monkeypatch):
    queue = StackQueue()
    queue.begin(1, StackPlacement(jax.devices()[:1]))
    queue.put(InputBatch((np.zeros((4, 2)), None), 4, None), full=True)

    def fail(arrays):
        raise jax.errors.JaxRuntimeError("the device is lost")

    monkeypatch.setattr(jax, "block_until_ready", fail)
    assert queue.spare_buffers() == []
