"""Weights in files of safetensors: names are paths, and other programs read and write them."""

import concurrent.futures
import json
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
        (
            {"a": np.ones(1)},
            {"a": {"b": lambda a: a.astype(np.complex128)}},
            "b has dtype complex128, which a file of safetensors cannot hold",
        ),
        ({"a": np.ones(1)}, lambda name: None, "rename has None for a. Write {'params/Dense_0/kernel': 'fc.weight'}"),
        ({"a": np.ones(1)}, {"a": {"b": 3}}, "rename has {'b': 3} for a. Write {'params/Dense_0/kernel': "),
        ({"a": np.ones(1)}, {"a": {}}, "rename has {} for a. Write {'params/Dense_0/kernel': "),
        ({"a": np.ones(1)}, 3, "rename must be a function of a name or a dict, got 3. Write {'params/Dense_0/kernel'"),
    ],
)
def test_what_cannot_be_written(tmp_path, variables, rename, message):
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        save_safetensors(tmp_path / "a.safetensors", variables, rename)
    assert os.listdir(tmp_path) == []


def test_a_write_that_fails_leaves_nothing(tmp_path):
    (tmp_path / "weights").mkdir()
    with pytest.raises(IsADirectoryError):
        save_safetensors(tmp_path / "weights", VARIABLES)
    assert os.listdir(tmp_path) == ["weights"]


def test_writers_of_one_file_at_the_same_time_leave_a_whole_one(tmp_path):
    def write(value):
        for _ in range(20):
            save_safetensors(tmp_path / "a.safetensors", {"w": np.full(100_000, value)})

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(write, [1, 2]))
    assert os.listdir(tmp_path) == ["a.safetensors"]
    assert len(np.unique(load_safetensors(tmp_path / "a.safetensors")["w"])) == 1


def test_a_converter_may_make_what_the_file_can_hold(tmp_path):
    rename = {"wide": {"real": np.real, "imag": lambda array: list(array.imag)}}
    save_safetensors(tmp_path / "a.safetensors", {"wide": np.array([1 + 2j])}, rename)
    assert_trees_equal(load_file(tmp_path / "a.safetensors"), {"real": np.array([1.0]), "imag": np.array([2.0])})


def test_typed_random_keys_are_written_as_their_data(tmp_path):
    save_safetensors(tmp_path / "a.safetensors", {"key": jax.random.key(3), "count": 2})
    loaded = load_safetensors(tmp_path / "a.safetensors")
    assert_trees_equal(loaded, {"key": np.asarray(jax.random.key_data(jax.random.key(3))), "count": np.array(2)})


def test_what_cannot_be_read(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="a.safetensors is no whole file of safetensors"):
        load_safetensors(tmp_path / "a.safetensors")
    save_file({"a": np.ones(1), "a/b": np.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="has 'a', and others below it"):
        load_safetensors(tmp_path / "a.safetensors")
    with pytest.raises(FileNotFoundError):
        load_safetensors(tmp_path / "missing.safetensors")
    with pytest.raises(IsADirectoryError, match="is a directory; expected the path of a file of safetensors"):
        load_safetensors(tmp_path)


def test_a_dtype_that_numpy_lacks_is_an_error_for_its_array_alone(tmp_path):
    path = tmp_path / "a.safetensors"
    header = json.dumps(
        {
            "narrow": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]},
            "wide": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        }
    ).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(ValueError, match="a.safetensors: narrow has the dtype F8_E4M3; expected one of .'BF16'"):
        load_safetensors(path)
    init_fn = js.init_from_checkpoint(path, {"wide": "params/w"})
    assert init_fn({"params": {"w": jnp.ones(1)}})["params"]["w"] == 0
    with pytest.raises(ValueError, match="narrow has the dtype F8_E4M3"):
        js.init_from_checkpoint(path, {"narrow": "params/w"})({"params": {"w": jnp.ones(4)}})


def test_the_variables_of_an_estimator_live_and_stored(tmp_path):
    def init_fn(rng):
        return {"params": {"w": jnp.zeros(())}, "keys": {"key": rng}}

    def estimator():
        return js.TPUEstimator(counting_model_fn, init_fn, model_dir=tmp_path, use_tpu=False)

    with pytest.raises(ValueError, match=r"Could not find trained model in model_dir.*estimator\.save\(input_fn\)"):
        estimator().variables()
    live = estimator().train(counting_input(), steps=3).variables()
    assert live["params"]["w"] == 3
    assert live["keys"]["key"].dtype == np.uint32
    assert_trees_equal(estimator().variables(), live)
