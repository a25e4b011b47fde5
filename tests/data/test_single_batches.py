"""What a dispatch carries where the batches come one by one."""

import collections
import threading

import jax
import numpy as np
import pytest
from tiny_models import Net as TinyNet
from tiny_models import assert_trees_equal, data, net_model_fn, run_config

import jaxspec as js
from jaxspec._src.device.program import Program

X, Y = data(rows=96)


class OneByOne(js.hooks.SessionRunHook):
    def next_step(self, step):
        return step + 1


@pytest.fixture
def carried(monkeypatch):
    """Counts the dispatches by (batches that the stack holds, batches that are used). All are on the devices."""
    counts, call = collections.Counter(), Program.__call__

    def counted(self, state, batches, start, count):
        features, labels, *_ = batches
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves((features, labels)))
        counts[jax.tree.leaves(features)[0].shape[0], count] += 1
        return call(self, state, batches, start, count)

    monkeypatch.setattr(Program, "__call__", counted)
    return counts


def net(model_dir):
    return js.TPUEstimator(
        net_model_fn,
        TinyNet(),
        model_dir=model_dir,
        config=run_config(every=100, num_shards=2),
        train_batch_size=4,
        eval_batch_size=4,
    )


def test_loops_of_one_step_carry_nothing_and_compute_the_same(tmp_path, carried):
    input_fn = js.inputs.numpy_input_fn(X, Y, num_epochs=None, shuffle=True)
    one_by_one = net(tmp_path / "a").train(input_fn, hooks=[OneByOne()], steps=20)
    assert sum(carried.values()) == 20
    assert all(capacity > 20 and count == 1 for capacity, count in carried)  # of stacks that are on the devices already
    carried.clear()
    together = net(tmp_path / "b").train(input_fn, steps=20)
    for name in together.get_variable_names():
        assert_trees_equal(together.get_variable_value(name), one_by_one.get_variable_value(name))


def test_a_slow_evaluation_carries_one_batch_and_finds_the_same(tmp_path, carried):
    estimator = net(tmp_path).train(js.inputs.numpy_input_fn(X, Y), steps=3)
    expected = estimator.evaluate(js.inputs.numpy_input_fn(X, Y))
    done = threading.Semaphore()

    class Done(js.hooks.SessionRunHook):
        def after_run(self, run_context, run_values):
            done.release()

    def slow():  # each batch comes when the one before is evaluated
        for i in range(0, 96, 4):
            assert done.acquire(timeout=60)
            yield X[i : i + 4], Y[i : i + 4]

    carried.clear()
    found = estimator.evaluate(slow, hooks=[Done()])
    assert carried[1, 1] >= 15
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-12)
    assert found["accuracy"] == expected["accuracy"]
