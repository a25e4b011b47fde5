"""Weights to start from, in a bucket: a model_dir, a checkpoint, a file of safetensors."""

import numpy as np
import pytest
from checkpoint_states import state_of

import jaxspec as js
from jaxspec._src.checkpoint.weights import open_weights

PARAMS = {"params": {"w": np.arange(3, dtype=np.float32)}}


def test_every_kind_of_weights_is_read(bucket):
    state = state_of(PARAMS["params"])
    checkpoint = js.checkpoint.save(bucket.directory, state)
    file = f"{bucket.directory}/files/weights.safetensors"
    js.export.save_safetensors(file, PARAMS)
    for path, read in {
        checkpoint: checkpoint,
        bucket.directory: checkpoint,
        file: file,
        f"{bucket.directory}/files": file,
    }.items():
        weights = open_weights(path)
        assert weights.path == read
        np.testing.assert_array_equal(weights.read(["params/w"])["params/w"], PARAMS["params"]["w"])
    assert list(js.export.load_safetensors(file)["params"]) == ["w"]


def test_a_path_with_nothing(bucket):
    with pytest.raises(FileNotFoundError, match=f"there is nothing at {bucket.directory}/nothing"):
        open_weights(f"{bucket.directory}/nothing")
