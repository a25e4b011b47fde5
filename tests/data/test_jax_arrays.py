"""Input that is on the devices already stays there."""

import jax
import numpy as np
import pytest
from tiny_models import assert_trees_equal, data, linear_init, linear_model_fn, run_config

import jaxspec as js
from jaxspec._src.data import batch, stack_queue

X, Y = data(rows=40)


def estimator(model_dir, num_shards):
    return js.TPUEstimator(
        linear_model_fn,
        linear_init,
        model_dir=model_dir,
        config=run_config(num_shards=num_shards),
        train_batch_size=8,
        eval_batch_size=8,
        predict_batch_size=8,
    )


def batches(place=lambda x: x):
    return lambda: [(place(X[i : i + 8]), place(Y[i : i + 8])) for i in range(0, 40, 8)]


def on_first(x):
    return jax.device_put(x, jax.devices()[0])


def split(x):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("rows",))
    return jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows")))


@pytest.fixture
def no_numpy(monkeypatch):
    """Batches may not become NumPy arrays."""

    def refuse(*args, **kwargs):
        raise AssertionError("a batch came to the host")

    monkeypatch.setattr(batch, "to_numpy", refuse)
    monkeypatch.setattr(stack_queue, "StackBuffers", refuse)


def weights(made):
    return {name: made.get_variable_value(name) for name in made.get_variable_names()}


@pytest.mark.parametrize("place", [on_first, split])
@pytest.mark.parametrize("num_shards", [1, 2])
def test_they_are_trained_on_as_numpy_arrays_are(tmp_path, request, place, num_shards):
    expected = estimator(tmp_path / "a", num_shards).train(batches())
    results = expected.evaluate(batches())
    request.getfixturevalue("no_numpy")
    made = estimator(tmp_path / "b", num_shards).train(batches(place))
    assert_trees_equal(weights(made), weights(expected))
    assert made.evaluate(batches(place)) == results


def test_a_short_batch_and_one_that_is_in_part_on_the_devices_are_as_ever(tmp_path):
    made = estimator(tmp_path, 2).train(batches(on_first))
    mixed = [(on_first(X[:8]), Y[:8]), (X[8:16], on_first(Y[8:16])), (on_first(X[16:19]), on_first(Y[16:19]))]
    plain = [(X[:8], Y[:8]), (X[8:16], Y[8:16]), (X[16:19], Y[16:19])]
    assert made.evaluate(lambda: mixed) == made.evaluate(lambda: plain)


def test_batches_that_were_not_used_of_an_iterator_of_the_callers_are_kept(tmp_path):
    held = iter(batches(on_first)())
    made = estimator(tmp_path / "a", 1)
    made.train(lambda: held, steps=2)
    made.train(lambda: held, steps=3)
    assert_trees_equal(weights(made), weights(estimator(tmp_path / "b", 1).train(batches(), steps=5)))
