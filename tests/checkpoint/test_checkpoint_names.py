"""Leaves keep their names and values apart, whatever their keys are."""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checkpoint_states import restored, saved, state_of
from tiny_models import assert_trees_equal, counting_input, counting_model_fn, run_config

import jaxspec as js
from jaxspec._src.checkpoint import backend
from jaxspec._src.checkpoint.named_arrays import state_arrays
from jaxspec._src.checkpoint.restore import stored_variables
from jaxspec.checkpoint import array_names, load_variables, read_array, read_arrays

_TREES = {
    "slash": {"a/b": 1.0, "a": {"b": 2.0}},
    "slash and escape": {"a/b": 1.0, "a": {"b": 2.0}, "a%2Fb": 3.0},
    "slash at both ends": {"a/": {"b": 1.0}, "a": {"/b": 2.0}},
    "dots": {"layer.0.weight": 1.0, "layer": {"0": {"weight": 2.0}}},
    "haiku": {"mlp/~/linear_0": {"w": 1.0}, "mlp": {"~": {"linear_0": {"w": 2.0}}}},
    "empty": {"": 1.0, "x": {"": 2.0}, "%": 3.0},
    "integers": {"layers": {0: 1.0, 1: 2.0}, "names": {"0": 3.0}},
    "sequence": {"layers": [1.0, 2.0], "pair": (3.0,)},
    "spaces and unicode": {"a b": 1.0, "\u00fc\u4e2d": 2.0, "value": 3.0, "\ud800": 4.0},
    "case": {"A": 1.0, "a": 2.0},
}


@pytest.mark.parametrize("params", _TREES.values(), ids=_TREES)
def test_every_leaf_is_restored_and_read_by_its_own_name(params, tmp_path):
    params = jax.tree.map(lambda x: jnp.full((2,), x), params)
    state = state_of(params)
    path = saved(tmp_path, state)
    assert_trees_equal(restored(path, state), state)
    assert jax.tree.structure(restored(path, state)) == jax.tree.structure(state)

    names = array_names(path)
    assert set(names) == set(state_arrays(state))
    values = sorted(read_array(path, name)[0] for name in names if name != "global_step" and not name.startswith("rng"))
    assert values == sorted(float(x[0]) for x in jax.tree.leaves(params))


def test_names_are_plain_where_that_is_clear_and_escaped_where_two_would_be_equal(tmp_path):
    one = jnp.ones(())
    assert "params/mlp/~/linear_0/w" in array_names(saved(tmp_path / "a", state_of({"mlp/~/linear_0": {"w": one}})))
    path = saved(tmp_path / "b", state_of({"a/b": one, "a": {"b": 2 * one}, "c/d": one}))
    assert set(array_names(path)) == {"params/a%2Fb", "params/a/b", "params/c%2Fd", "global_step"}
    assert read_array(path, "params/a%2Fb") == 1
    assert read_array(path, "params/a/b") == 2
    with pytest.raises(ValueError, match=r"model.ckpt-1 has no array 'params/a'; the names are"):
        read_array(path, "params/a")


def test_many_arrays_are_read_in_one_pass(tmp_path, monkeypatch):
    params = {"a": {"w": jnp.arange(3.0), "none": jnp.zeros((0, 2))}, "b": jnp.ones((), jnp.bfloat16)}
    path = saved(tmp_path, state_of(params))
    reads = []
    load = backend.load
    monkeypatch.setattr(backend, "load", lambda path, parts: reads.append(set(parts)) or load(path, parts))
    assert_trees_equal(load_variables(path), {"params": params})
    assert reads == [{"meta"}, {"variables"}]
    names = ["params/b", "global_step", "params/a/none"]
    read = read_arrays(path, names)
    assert list(read) == names
    assert (read["params/b"], read["global_step"], read["params/a/none"].shape) == (1, 1, (0, 2))
    assert reads[2:] == [{"meta"}, {"variables", "step"}]
    assert read_arrays(path, []) == {}
    with pytest.raises(ValueError, match=r"model.ckpt-1 has no array 'params/c'; the names are"):
        read_arrays(path, ["params/b", "params/c"])


def test_variables_of_a_list_of_names_come_nested_in_one_pass(tmp_path, monkeypatch):
    params = {"a/b": jnp.ones(()), "a": {"b": jnp.zeros(2), "c": jnp.ones(3)}, "layers": [jnp.ones(1), jnp.zeros(1)]}
    path = saved(tmp_path, state_of(params, batch_stats={"mean": jnp.ones(4)}))
    names = ["batch_stats/mean", "params/layers/1", "params/a%2Fb"]
    expected = {"params": {"a/b": jnp.ones(()), "layers": {"1": jnp.zeros(1)}}, "batch_stats": {"mean": jnp.ones(4)}}
    read = []
    load = backend.load
    monkeypatch.setattr(backend, "load", lambda path, parts: read.append(parts) or load(path, parts))
    assert_trees_equal(load_variables(path, names), expected)
    leaves = [leaf for parts in read[1:] for leaf in jax.tree.leaves(parts)]
    assert sum(leaf is not backend.NOT_READ for leaf in leaves) == len(names)
    assert load_variables(path, []) == {}
    with pytest.raises(ValueError, match=r"model.ckpt-1 has no array 'params/a'; the names are .'batch_stats/mean'"):
        load_variables(path, ["params/a"])
    for load_names in (load_variables, read_arrays):
        with pytest.raises(TypeError, match=r"expected a list of names, got the string 'params/a/c'. Write \["):
            load_names(path, "params/a/c")


def test_a_checkpoint_of_tensorflow_in_place_of_ours_is_an_error_that_says_how_to_read_it(tmp_path):
    stored = pathlib.Path(__file__).parents[1] / "tensorflow_oracle" / "data" / "continued" / "adam" / "model.ckpt-20"
    with pytest.raises(
        ValueError, match=r"It is a checkpoint of TensorFlow: .*checkpoint\.tf.* warm_start_from='.*-20'"
    ):
        load_variables(str(stored))


def test_a_model_dir_in_place_of_a_checkpoint_is_an_error_that_names_the_latest(tmp_path):
    path = saved(tmp_path, state_of({"w": jnp.ones(())}))
    with pytest.raises(
        ValueError, match=f"Expected a directory named .* a model_dir, whose latest checkpoint is {path}"
    ):
        load_variables(str(tmp_path))


class _Same:
    """A key that looks like any other."""

    def __init__(self, number):
        self.number = number

    def __lt__(self, other):
        return self.number < other.number

    def __str__(self):
        return "same"


_KEYS = (_Same(0), _Same(1))


def test_keys_with_the_same_name_are_refused_naming_both_leaves(tmp_path):
    params = {_Same(0): jnp.zeros(()), _Same(1): jnp.ones(())}
    with pytest.raises(ValueError, match=r"the leaves .* and .* have the same name, params/same: .*another key"):
        saved(tmp_path, state_of(params))
    # One key is a leaf and the other a node, or both are nodes.
    for one in (jnp.zeros(()), {"a": jnp.zeros(())}):
        params = {_Same(0): one, _Same(1): {"b": jnp.ones(())}}
        with pytest.raises(ValueError, match=r"the leaves .* and .*\['b'\] have the same name, params/same: "):
            saved(tmp_path, state_of(params))
    assert os.listdir(tmp_path) == []


def test_training_refuses_keys_with_the_same_name_before_the_first_step(tmp_path):
    def init_fn():
        return {"params": {_KEYS[0]: jnp.zeros(()), _KEYS[1]: jnp.ones(())}}

    def model_fn(variables, features, mode):
        train_op = js.minimize(optax.sgd(1.0), lambda v: sum(v["params"].values()))
        return js.TPUEstimatorSpec(mode, loss=features["x"].mean(), train_op=train_op)

    estimator = js.TPUEstimator(model_fn, init_fn, model_dir=tmp_path, use_tpu=False, config=run_config(save=1))
    with pytest.raises(ValueError, match=r"the leaves .* and .* have the same name, params/same: .*another key"):
        estimator.train(counting_input(), steps=1)
    assert not any("ckpt" in name for name in os.listdir(tmp_path))


def test_leaves_without_elements_are_saved_and_restored(tmp_path):
    state = state_of({"w": jnp.ones(3), "none": jnp.zeros((0, 3), jnp.bfloat16)}, empty={"all": jnp.zeros((2, 0), int)})
    path = saved(tmp_path, state)
    got = restored(path, state)
    assert_trees_equal(got, state)
    assert got.variables["params"]["none"].dtype == jnp.bfloat16
    assert read_array(path, "empty/all").shape == (2, 0)
    only = state_of({"none": jnp.zeros(0)}, step=2)
    assert_trees_equal(restored(saved(tmp_path, only), only), only)


def test_shapes_of_variables_are_known_without_a_tree_to_read_into(tmp_path):
    plain = state_of({"a/b": jnp.arange(3), "a": {"b": jnp.ones(())}}, rngs={"k": jax.random.key(3)})
    got = stored_variables(saved(tmp_path / "plain", plain))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), got) == jax.tree.map(
        lambda x: (x.shape, x.dtype), plain.variables
    )
    assert jax.tree.structure(got) == jax.tree.structure(plain.variables)
    for number, params in enumerate(({0: jnp.ones(())}, [jnp.ones(())])):
        assert stored_variables(saved(tmp_path / str(number), state_of(params))) is None


def test_random_keys_of_another_implementation_stay_what_they_were(tmp_path):
    state = state_of({"w": jnp.ones(2)}, rngs={"k": jax.random.key(3)})
    path = saved(tmp_path, state)
    with jax.default_prng_impl("rbg"):
        like = state_of({"w": jnp.ones(2)}, rngs={"k": jax.random.key(0)})
        got = restored(path, like)
    assert jax.random.key_impl(got.rng) == jax.random.key_impl(state.rng)
    assert_trees_equal(got, state)


def test_training_with_a_random_key_among_the_variables_goes_on_under_another_default_implementation(tmp_path):
    def init_fn():
        return {"params": {"w": jnp.zeros(())}, "rngs": {"k": jax.random.key(3)}}

    def make():
        return js.TPUEstimator(counting_model_fn, init_fn, model_dir=tmp_path, use_tpu=False, config=run_config(save=1))

    make().train(counting_input(), steps=1)
    with jax.default_prng_impl("rbg"):
        assert make().evaluate(counting_input(1))["global_step"] == 1
        estimator = make().train(counting_input(), steps=1)
        assert estimator.get_variable_value("params/w") == 2
    stored = read_array(str(tmp_path / "model.ckpt-2"), "rngs/k")
    np.testing.assert_array_equal(stored, jax.random.key_data(jax.random.key(3)))


def test_raw_keys_of_another_implementation_are_named_as_that(tmp_path):
    path = saved(tmp_path, state_of({"k": jax.random.PRNGKey(0)}))
    with jax.default_prng_impl("rbg"):
        like = state_of({"k": jax.random.PRNGKey(0)})
        with pytest.raises(
            ValueError, match=r"random keys of another kind: params/k is uint32\[2\].*'threefry2x32'; here .*'rbg'"
        ):
            restored(path, like)


@pytest.mark.parametrize(
    "name",
    [
        "run[1,2]",
        "st*r",
        "what?a=b",
        "back\\slash",
        "50%20x",
        "\u00fcn\u00ef \u4e2d",
        'it\'s "q"',
        "model.ckpt-3",
        "{x}",
    ],
)
def test_a_model_dir_may_have_any_name(name, tmp_path):
    state = state_of({"w": jnp.arange(4.0)})
    path = saved(tmp_path / name, state)
    assert_trees_equal(restored(path, state), state)
    np.testing.assert_array_equal(read_array(path, "params/w"), [0, 1, 2, 3])
