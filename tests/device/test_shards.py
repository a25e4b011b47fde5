"""Every reshape over shards, on arrays that are small enough to write down."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import data

import jaxspec as js
from jaxspec._src.device import shards
from jaxspec._src.metrics.shard_scalars import ShardScalars
from jaxspec._src.spec.tpu_estimator_spec import replaced

X, _ = data(rows=16)
BATCH = {"a": np.arange(12).reshape(6, 2), "b": np.arange(6)}


def assert_equal(tree, expected):
    jax.tree.map(np.testing.assert_array_equal, tree, expected)


def test_a_stack_of_one_batch_shares_its_memory():
    stack = shards.stack_of_one(BATCH, 3)
    assert_equal(stack["b"], [[[0, 1], [2, 3], [4, 5]]])
    assert stack["a"].shape == (1, 3, 2, 2)
    assert np.shares_memory(stack["a"], BATCH["a"])
    assert shards.stack_of_one({"empty": np.zeros((4, 0))})["empty"].shape == (1, 1, 4, 0)


def test_places_number_the_batches_and_their_shards():
    places = shards.places_in_stack(7, 5, 3, 2)
    assert places.dtype == np.int32
    assert_equal(places[:, :, 0], [[7, 7], [8, 8], [9, 9]])
    assert_equal(places[:, :, 1], np.full((3, 2), 5))


def spec_with(loss, **tensors):
    """What a device returns: a spec whose loss may have any shape."""
    return replaced(js.TPUEstimatorSpec("eval", loss=np.float32(0), eval_metrics=(lambda **kw: {}, tensors)), loss=loss)


def outputs():
    """Of two steps on two shards: row values of three rows a shard, and one scalar."""
    rows = np.arange(12).reshape(2, 2, 3)
    scalars = np.array([[10, 11], [20, 21]])
    return spec_with(np.array([0.5, 1.5]), rows=rows, scalar=scalars)


def test_each_step_of_a_dispatch_is_a_spec_of_its_whole_batch():
    _, spec = shards.specs_of_steps(outputs(), 2)
    assert spec.loss == 1.5
    assert_equal(spec.eval_metrics[1], {"rows": [6, 7, 8, 9, 10, 11], "scalar": [20, 21]})
    assert not isinstance(spec.eval_metrics[1]["scalar"], ShardScalars)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_outputs_are_on_their_way_to_the_host_before_they_are_asked_for(monkeypatch, platform):
    started = []
    x = jnp.arange(3.0)
    monkeypatch.setattr(type(x), "copy_to_host_async", lambda array: started.append(array.shape))
    spec = js.TPUEstimatorSpec(js.ModeKeys.PREDICT, predictions={"x": x, "on the host": np.zeros(2)})
    spec = replaced(spec, export_outputs=None)
    with jax.transfer_guard("disallow"):
        shards.start_fetch(spec, [types.SimpleNamespace(platform=platform)])
    assert started == ([] if platform == "cpu" else [(3,)])


def test_scalars_of_shards_carry_their_rows_where_batches_differ_in_size():
    first, _ = shards.specs_of_steps(outputs(), 2, rows_per_shard=3)
    assert_equal(first.eval_metrics[1]["scalar"].rows, [3, 3])


def test_steps_of_one_shard_are_put_together_as_a_dispatch_gives_them():
    # Each spec has another function, as specs from two calls of model_fn have.
    spec = shards.outputs_of_steps([spec_with(np.float32(i), x=np.full(3, i)) for i in (1, 2)], room=4)
    assert_equal(spec.loss, [1, 2, 0, 0])
    assert_equal(spec.eval_metrics[1]["x"], np.array([[[1] * 3], [[2] * 3], [[0] * 3], [[0] * 3]]))
    again = [step.eval_metrics[1]["x"] for step in shards.specs_of_steps(spec, 2)]
    assert_equal(again, [np.full(3, 1), np.full(3, 2)])


def test_groups_of_shards_are_joined_in_order():
    parts = [spec_with(np.zeros(3), x=np.array(x)) for x in ([0, 1], [2])]
    joined = shards.join_groups(parts, np.float32(4))
    assert joined.loss == 4
    assert_equal(joined.eval_metrics[1]["x"], [0, 1, 2])
    assert_equal(shards.join_groups(parts[:1], None).eval_metrics[1]["x"], [0, 1])


@pytest.mark.parametrize(("value", "whole"), [([[1, 2], [3, 4]], [1, 2, 3, 4]), ([1, 2], [1, 2]), (3, 3)])
def test_shards_are_concatenated_and_scalars_stay_apart(value, whole):
    assert_equal(shards.concatenate_shards(np.array(value)), whole)
    assert_equal(shards.fetch_step(jnp.array([value, value]), index=1), whole)


def test_shard_splits_in_order_and_gather_puts_together():
    features, _ = js.shard((X, np.zeros(16)), 4)
    assert features.shape == (4, 4, 4)
    np.testing.assert_array_equal(features[1], X[4:8])
    assert features.base is not None  # no copy
    spec = js.TPUEstimatorSpec(
        "eval", loss=jnp.float32(2), eval_metrics=(lambda a, b: {}, [jnp.asarray(features), jnp.arange(4)])
    )
    whole = js.gather(spec)
    np.testing.assert_array_equal(whole.eval_metrics[1][0], X)
    np.testing.assert_array_equal(whole.eval_metrics[1][1], [0, 1, 2, 3])
    assert isinstance(whole.eval_metrics[1][0], np.ndarray)


def test_shard_of_what_does_not_divide():
    with pytest.raises(
        ValueError, match=r"shard: leaf \['x'\] is float32\[16,4\]; its leading size must be .* shards, 3"
    ):
        js.shard({"x": X}, 3)
