"""Weights in files of safetensors: names are paths, and other programs read and write them."""

import os
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_models import assert_trees_equal, counting_input, counting_model_fn

import jaxspec as js
from jaxspec.export import load_safetensors, save_safetensors

VARIABLES = {
    "params": {"Dense_0": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3, jnp.bfloat16)}},
    "batch_stats": {"mean": np.zeros((0, 2)), "count": np.int64(7), "flags": np.array([True, False])},
}


def test_variables_come_back_as_they_were(tmp_path):
    save_safetensors(tmp_path / "weights.safetensors", VARIABLES)
    loaded = load_safetensors(tmp_path / "weights.safetensors")
    assert_trees_equal(loaded, VARIABLES)
    assert loaded["params"]["Dense_0"]["bias"].dtype == ml_dtypes.bfloat16
    assert os.listdir(tmp_path) == ["weights.safetensors"]


def test_the_library_reads_what_is_written_and_writes_what_is_read(tmp_path):
    params = {"params": {"w": np.arange(6.0, dtype=np.float32).reshape(2, 3).T}}
    save_safetensors(tmp_path / "ours.safetensors", params)
    read = load_file(tmp_path / "ours.safetensors")
    np.testing.assert_array_equal(read["params/w"], params["params"]["w"])
    save_file({"fc.weight": np.ones(2)}, tmp_path / "theirs.safetensors")
    np.testing.assert_array_equal(load_safetensors(tmp_path / "theirs.safetensors")["fc.weight"], np.ones(2))


def test_names_and_layouts_of_pytorch_there_and_back(tmp_path):
    rng = np.random.default_rng(0)
    params = {
        "Dense_0": {"kernel": rng.normal(size=(2, 3)).astype(np.float32)},
        "Conv_0": {"kernel": rng.normal(size=(5, 7, 3, 4)).astype(np.float32)},
    }
    path = tmp_path / "torch.safetensors"
    save_safetensors(
        path,
        {"params": params},
        rename={
            "params/Dense_0/kernel": {"fc.weight": np.transpose},
            "params/Conv_0/kernel": {"conv.weight": lambda kernel: kernel.transpose(3, 2, 0, 1)},
        },
    )
    assert {name: array.shape for name, array in load_file(path).items()} == {
        "fc.weight": (3, 2),
        "conv.weight": (4, 3, 5, 7),
    }
    init_fn = js.init_from_checkpoint(
        path,
        {
            "fc.weight": {"params/Dense_0/kernel": np.transpose},
            "conv.weight": {"params/Conv_0/kernel": lambda weight: weight.transpose(2, 3, 1, 0)},
        },
    )
    fresh = {name: {"kernel": jnp.zeros_like(layer["kernel"])} for name, layer in params.items()}
    assert_trees_equal(init_fn({"params": fresh}), {"params": params})


def test_a_function_renames(tmp_path):
    save_safetensors(tmp_path / "a.safetensors", {"params": {"w": np.ones(2)}}, lambda name: name.replace("/", "."))
    assert list(load_file(tmp_path / "a.safetensors")) == ["params.w"]


@pytest.mark.parametrize(
    ("variables", "rename", "message"),
    [
        ({"a": np.ones(1)}, {"b": "c"}, "save_safetensors: rename has ['b'], and the variables are ['a']."),
        ({"a": np.ones(1), "b": np.ones(1)}, {"a": "b"}, "rename gives the name 'b' to b and to another array"),
        ({"a": np.ones(1, np.complex128)}, None, "a has dtype complex128, which a file of safetensors cannot hold"),
    ],
)
def test_what_cannot_be_written(tmp_path, variables, rename, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        save_safetensors(tmp_path / "a.safetensors", variables, rename)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (3, "rename must be a dict or a function, got 3. Write {'params/w': 'weight'}, or"),
        ({"a": 3}, "rename gives 'a' the name 3. Write"),
        ({"a": {"b": 3}}, "rename gives 'a' the name {'b': 3}. Write"),
        (lambda name: None, "rename gives 'a' the name None. Write"),
    ],
)
def test_what_renames_nothing(tmp_path, rename, message):
    with pytest.raises(TypeError, match=re.escape(f"save_safetensors: {message}")):
        save_safetensors(tmp_path / "a.safetensors", {"a": np.ones(1)}, rename)


def test_what_a_converter_returns(tmp_path):
    path, weights = tmp_path / "a.safetensors", {"a": np.ones((1, 2))}
    save_safetensors(path, weights, {"a": {"b": lambda a: jnp.asarray(a).T, "c": np.ndarray.tolist}})
    assert {name: array.shape for name, array in load_file(path).items()} == {"b": (2, 1), "c": (1, 2)}
    with pytest.raises(ValueError, match="b has dtype str96, which a file of safetensors cannot hold"):
        save_safetensors(path, weights, {"a": {"b": lambda a: "abc"}})


def test_random_keys_are_their_data(tmp_path):
    save_safetensors(tmp_path / "a.safetensors", {"key": jax.random.key(7)})
    np.testing.assert_array_equal(load_safetensors(tmp_path / "a.safetensors")["key"], [0, 7])


def test_what_cannot_be_read(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="a.safetensors is no whole file of safetensors"):
        load_safetensors(tmp_path / "a.safetensors")
    save_file({"a": np.ones(1), "a/b": np.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="has 'a', and others below it"):
        load_safetensors(tmp_path / "a.safetensors")
    with pytest.raises(FileNotFoundError):
        load_safetensors(tmp_path / "missing.safetensors")


def test_the_variables_of_an_estimator_live_and_stored(tmp_path):
    def init_fn(rng):
        return {"params": {"w": jnp.zeros(())}, "keys": {"key": rng}}

    def estimator():
        return js.TPUEstimator(counting_model_fn, init_fn, model_dir=tmp_path, use_tpu=False)

    with pytest.raises(ValueError, match="Could not find trained model in model_dir"):
        estimator().variables()
    live = estimator().train(counting_input(), steps=3).variables()
    assert live["params"]["w"] == 3
    assert live["keys"]["key"].dtype == np.uint32
    assert_trees_equal(estimator().variables(), live)
