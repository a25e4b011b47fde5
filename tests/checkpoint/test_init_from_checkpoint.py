"""init_from_checkpoint on weights of our own: scopes, names, converters. Those of TensorFlow have their tests in
test_tensorflow_models.py."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checkpoint_states import state_of
from safetensors.numpy import save_file
from tiny_models import assert_trees_equal

import jaxspec as js

STORED = {
    "resnet": {"conv": {"kernel": np.arange(6.0, dtype=np.float32).reshape(2, 3), "bias": np.ones(3, np.float32)}}
}
FRESH = {
    "params": {
        "backbone": {"conv": {"kernel": np.zeros((2, 3), np.float32), "bias": np.zeros(3, np.float32)}},
        "head": {"kernel": np.zeros((3, 2), np.float32)},
    }
}


def kernel_of(variables):
    return variables["params"]["backbone"]["conv"]["kernel"]


@pytest.mark.parametrize("given", ["a checkpoint", "a model_dir"])
def test_a_scope_of_a_checkpoint(tmp_path, given):
    path = js.checkpoint.save(tmp_path, state_of(STORED))
    init_fn = js.init_from_checkpoint(
        path if given == "a checkpoint" else tmp_path, {"params/resnet/": "params/backbone/"}
    )
    variables = init_fn(FRESH)
    np.testing.assert_array_equal(kernel_of(variables), STORED["resnet"]["conv"]["kernel"])
    np.testing.assert_array_equal(variables["params"]["head"]["kernel"], 0)


def test_a_scope_without_a_collection_is_taken_in_each_collection(tmp_path):
    path = js.checkpoint.save(
        tmp_path, state_of({"backbone": {"w": jnp.ones(())}}, batch_stats={"backbone": {"mean": jnp.ones(3)}})
    )
    fresh = {
        "params": {"resnet50": {"w": jnp.zeros(())}, "head": {"w": jnp.zeros(())}},
        "batch_stats": {"resnet50": {"mean": jnp.zeros(3)}},
    }
    expected = {
        "params": {"resnet50": {"w": jnp.ones(())}, "head": {"w": jnp.zeros(())}},
        "batch_stats": {"resnet50": {"mean": jnp.ones(3)}},
    }
    assert_trees_equal(js.init_from_checkpoint(path, {"backbone/": "resnet50/"})(fresh), expected)
    with pytest.raises(ValueError, match="not found in the checkpoint .* 'params/spine/w' .for params/resnet50/w"):
        js.init_from_checkpoint(path, {"spine/": "resnet50/"})(fresh)
    with pytest.raises(ValueError, match="there is no variable 'resnet/'"):
        js.init_from_checkpoint(path, {"backbone/": "resnet/"})(fresh)


def test_typed_random_keys_are_made_of_their_data(tmp_path):
    path = js.checkpoint.save(tmp_path, state_of({"w": jnp.ones(())}, rngs={"key": jax.random.key(3)}))
    fresh = {"params": {"w": jnp.zeros(())}, "rngs": {"key": jax.random.key(0)}}
    variables = js.init_from_checkpoint(path, {"/": "/"})(fresh)
    assert variables["rngs"]["key"] == jax.random.key(3)


def test_arrays_of_pytorch_are_converted(tmp_path):
    """Its Linear has [out, in], its Conv2d [out, in, height, width]."""
    dense, conv = np.random.default_rng(0).normal(size=(3, 2)), np.random.default_rng(1).normal(size=(4, 3, 5, 7))
    save_file({"fc.weight": dense, "conv.weight": conv}, tmp_path / "torch.safetensors")
    init_fn = js.init_from_checkpoint(
        tmp_path / "torch.safetensors",
        {
            "fc.weight": {"params/Dense_0/kernel": np.transpose},
            "conv.weight": {"params/Conv_0/kernel": lambda array: array.transpose(2, 3, 1, 0)},
        },
    )
    fresh = {"Dense_0": {"kernel": jnp.zeros((2, 3))}, "Conv_0": {"kernel": jnp.zeros((5, 7, 3, 4))}}
    params = init_fn({"params": fresh})["params"]
    np.testing.assert_allclose(params["Dense_0"]["kernel"], dense.T, rtol=1e-6)
    np.testing.assert_allclose(params["Conv_0"]["kernel"][1, 2, 0, 3], conv[3, 0, 1, 2], rtol=1e-6)


def test_in_a_scaffold_it_opens_the_weights_once_and_not_after_a_restart(tmp_path):
    path = js.checkpoint.save(tmp_path / "old", state_of({"w": jnp.float32(5)}))

    def model_fn(variables, features, mode):
        init_fn = js.init_from_checkpoint(path, {"params/w": "params/w"})
        return js.TPUEstimatorSpec(
            mode,
            loss=variables["params"]["w"] * features.mean(),
            train_op=js.minimize(optax.sgd(1.0)),
            scaffold_fn=lambda: js.Scaffold(init_fn),
        )

    def train():
        estimator = js.TPUEstimator(
            model_fn, lambda: {"params": {"w": jnp.zeros(())}}, model_dir=tmp_path / "run", use_tpu=False
        )
        return float(estimator.train(lambda: [np.ones(4, np.float32)], steps=1).get_variable_value("params/w"))

    assert train() == 4
    (tmp_path / "old").rename(tmp_path / "gone")
    assert train() == 3


def test_a_path_with_nothing_is_an_error_when_the_variables_are_made(tmp_path):
    init_fn = js.init_from_checkpoint(tmp_path / "nothing", {"/": "/"})
    with pytest.raises(ValueError, match="there is nothing at .*/nothing. Expected the path of a checkpoint"):
        init_fn(FRESH)
