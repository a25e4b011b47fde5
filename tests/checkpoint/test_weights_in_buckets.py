"""Weights to start from, in a bucket: a model_dir, a checkpoint, a file of safetensors."""

import numpy as np
import optax
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
    np.testing.assert_equal(js.checkpoint.load_variables(checkpoint, ["params/w"]), PARAMS)


def test_an_estimator_saves_and_starts_warm_in_a_bucket(bucket):
    def model_fn(variables, features, mode):
        return js.TPUEstimatorSpec(mode, loss=variables["params"]["w"].sum(), train_op=js.minimize(optax.sgd(0.0)))

    def estimator(name, w, **kwargs):
        init_fn = lambda: {"params": {"w": w}}  # noqa: E731
        return js.TPUEstimator(model_fn, init_fn, model_dir=f"{bucket.directory}/{name}", use_tpu=False, **kwargs)

    def input_fn():
        return [np.ones(2, np.float32)]

    first = estimator("first", PARAMS["params"]["w"])
    assert first.save(input_fn) == f"{bucket.directory}/first/model.ckpt-0"
    second = estimator("second", np.zeros(3, np.float32), warm_start_from=first.model_dir)
    second.save(input_fn)
    np.testing.assert_equal(second.variables(), PARAMS)
    assert second.warm_start_report.path == first.latest_checkpoint()


def test_a_path_with_nothing(bucket):
    with pytest.raises(FileNotFoundError, match=f"there is nothing at {bucket.directory}/nothing"):
        open_weights(f"{bucket.directory}/nothing")
