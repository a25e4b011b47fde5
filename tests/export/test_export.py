"""An export computes what predict computes: for every batch size, on one device and on four, of all kinds of weights."""

import json
import os
import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from exports import ROWS, init_fn, model_fn, predicted, receiver_fn, shape, trained
from tiny_models import assert_trees_equal

import jaxspec as js
from jaxspec.export import ClassificationOutput, PredictOutput, RegressionOutput, load


def outputs_of(loaded, **arrays):
    return jax.device_get(loaded(**arrays))


@pytest.mark.parametrize("rows", [1, 3, 8, 24])
@pytest.mark.parametrize("devices", [1, 4])
def test_it_equals_predict(estimator, exported, rows, devices):
    loaded = load(exported, devices=jax.devices()[:devices])
    want = predicted(estimator, {"x": ROWS[:rows]})
    for arrays in (
        ROWS[:rows],
        jnp.asarray(ROWS[:rows]),
        jax.device_put(ROWS[:rows], jax.devices()[3]),
        ROWS[:rows].tolist(),
    ):
        got = loaded(x=arrays)
        spread = devices if rows % devices == 0 else 1
        assert {len(array.devices()) for array in got.values()} == {spread}
        np.testing.assert_array_equal(got["class"], want["class"])
        np.testing.assert_allclose(got["probabilities"], want["probabilities"], rtol=1e-6)


def test_all_devices_are_used_unless_some_are_named(exported):
    assert len(load(exported)(x=ROWS)["class"].devices()) == 4
    for named in (jax.devices()[2:3], jax.devices()[2]):
        assert load(exported, devices=named)(x=ROWS)["class"].devices() == {jax.devices()[2]}


@pytest.mark.parametrize("options", [{"shards": 4}, {"use_tpu": False}], ids=["four shards", "the CPU fallback"])
def test_estimators_of_all_kinds(tmp_path, options):
    estimator = trained(tmp_path / "model", **options)
    loaded = load(estimator.export_saved_model(tmp_path / "x", receiver_fn()))
    want = predicted(estimator, {"x": ROWS[:8]})
    np.testing.assert_allclose(loaded(x=ROWS[:8])["probabilities"], want["probabilities"], rtol=1e-6)


def test_what_it_says_of_itself(estimator, exported):
    content = json.loads(pathlib.Path(exported, "signature.json").read_text())
    written_by = content["written_by"]
    assert written_by.pop("time").startswith("20")
    assert written_by == {
        "jaxspec": "0.1.0",
        "jax": jax.__version__,
        "model_fn": "model_fn",
        "checkpoint": "the state in memory",
    }
    assert content["global_step"] == 1
    assert content["platforms"] == ["cpu", "cuda", "tpu"]
    assert content["weights"] == {
        "params/b": {"shape": [3], "dtype": "float32"},
        "params/w": {"shape": [4, 3], "dtype": "float32"},
    }
    (name, entry) = content["signatures"].popitem()
    assert name == "serving_default"
    assert entry["inputs"] == {"x": {"shape": ["batch", 4], "dtype": "float32"}}
    assert entry["outputs"] == {
        "class": {"shape": ["batch"], "dtype": "int32"},
        "probabilities": {"shape": ["batch", 3], "dtype": "float32"},
    }
    loaded = load(exported)
    assert loaded.content["global_step"] == 1
    assert repr(loaded) == (
        "LoadedExport(serving_default(x: float32[batch,4]) -> class: int32[batch], probabilities: float32[batch,3])"
    )
    assert '"shape": [ "batch", 4 ]' in pathlib.Path(exported, "signature.json").read_text()


def test_the_weights_are_a_file_for_every_program(estimator, exported):
    from safetensors.numpy import load_file

    weights = load_file(f"{exported}/weights.safetensors")
    for name, array in weights.items():
        np.testing.assert_array_equal(array, estimator.get_variable_value(name))
    assert sorted(weights) == ["params/b", "params/w"]


def test_the_directory_is_named_by_the_time(estimator, tmp_path):
    paths = [estimator.export_saved_model(tmp_path, receiver_fn()) for _ in range(3)]
    assert all(re.fullmatch(r"\d{10}", os.path.basename(path)) for path in paths)
    assert sorted(os.listdir(tmp_path)) == [os.path.basename(path) for path in paths]
    (tmp_path / "9000000000").mkdir()
    newest = estimator.export_saved_model(tmp_path, receiver_fn())
    assert os.path.basename(newest) == "9000000001"


def test_assets(estimator, tmp_path):
    (tmp_path / "words.txt").write_text("a b")
    assets = {"vocab.txt": str(tmp_path / "words.txt"), "more/vocab.txt": str(tmp_path / "words.txt")}
    path = estimator.export_saved_model(tmp_path / "exports", receiver_fn(), assets)
    for name in assets:
        assert pathlib.Path(path, "assets.extra", name).read_text() == "a b"


def test_a_checkpoint(tmp_path):
    estimator = trained(tmp_path / "model")
    first, want = estimator.latest_checkpoint(), predicted(estimator, {"x": ROWS})
    estimator.train(lambda: [({"x": ROWS[:8]}, np.zeros(8, np.int32))], max_steps=2)
    paths = [estimator.export_saved_model(tmp_path / "x", receiver_fn(), None, path) for path in (first, None)]
    old, new = (load(path) for path in paths)
    np.testing.assert_allclose(old(x=ROWS)["probabilities"], want["probabilities"], rtol=1e-6)
    assert not np.allclose(new(x=ROWS)["probabilities"], want["probabilities"], rtol=1e-6)
    assert [one.content["global_step"] for one in (old, new)] == [1, 2]
    assert old.content["written_by"]["checkpoint"] == first


def test_a_warm_start(estimator, exported, tmp_path):
    params, (want,) = {}, [predicted(estimator, {"x": ROWS})]
    started = js.TPUEstimator(model_fn, init_fn, model_dir=tmp_path / "fresh", params=params, warm_start_from=exported)
    loaded = load(started.export_saved_model(tmp_path / "x", receiver_fn()))
    np.testing.assert_allclose(loaded(x=ROWS)["probabilities"], want["probabilities"], rtol=1e-6)
    assert (loaded.content["global_step"], loaded.content["written_by"]["checkpoint"]) == (0, "the warm start")


# Signatures.


def test_signatures(tmp_path):
    def outputs(logits, features):
        return {
            "serving_default": PredictOutput(logits),
            "classify": ClassificationOutput(scores=jax.nn.softmax(logits), classes=logits.argsort(-1)),
            "regress": RegressionOutput(logits[:, 0]),
        }

    estimator = trained(tmp_path / "model", outputs=outputs)
    loaded = load(estimator.export_saved_model(tmp_path / "x", receiver_fn()))
    assert set(loaded.signatures) == {"serving_default", "classify", "regress"}
    w, b = (estimator.get_variable_value(f"params/{name}") for name in "wb")
    logits = ROWS @ w + b
    np.testing.assert_allclose(loaded(x=ROWS)["output"], logits, rtol=1e-5)
    np.testing.assert_array_equal(loaded.signatures["classify"](x=ROWS)["classes"], logits.argsort(-1))
    np.testing.assert_allclose(loaded.signatures["regress"](x=ROWS)["outputs"], logits[:, 0], rtol=1e-5)
    assert list(loaded.signatures["classify"].outputs) == ["classes", "scores"]


def test_one_signature_is_the_default_too(tmp_path):
    estimator = trained(tmp_path / "model", outputs=lambda logits, features: {"scores": PredictOutput({"s": logits})})
    path = estimator.export_saved_model(tmp_path / "x", receiver_fn())
    loaded = load(path)
    assert set(loaded.signatures) == {"scores", "serving_default"}
    assert os.listdir(f"{path}/programs") == ["0.jax"]
    assert_trees_equal(loaded(x=ROWS), loaded.signatures["scores"](x=ROWS))


def test_an_output_that_is_not_of_the_batch(tmp_path):
    outputs = lambda logits, features: {"a": PredictOutput({"logits": logits, "names": jnp.arange(3)})}  # noqa: E731
    loaded = load(trained(tmp_path / "model", outputs=outputs).export_saved_model(tmp_path / "x", receiver_fn()))
    got = loaded(x=ROWS)
    assert got["logits"].shape == (24, 3)
    np.testing.assert_array_equal(got["names"], [0, 1, 2])


# Receivers.


def test_features_that_a_function_computes(tmp_path):
    estimator = trained(tmp_path / "model")

    def features(tensors):
        return {"x": jnp.concatenate([tensors["left"], tensors["right"].astype(jnp.float32)], axis=-1) / 2}

    tensors = {"left": shape(3), "right": shape(1, dtype=jnp.uint8)}
    loaded = load(estimator.export_saved_model(tmp_path / "x", receiver_fn(features, **tensors)))
    right = np.arange(24, dtype=np.uint8)[:, None]
    want = predicted(estimator, {"x": np.concatenate([ROWS[:, :3], right], -1).astype(np.float32) / 2})
    np.testing.assert_allclose(loaded(left=ROWS[:, :3], right=right)["probabilities"], want["probabilities"], rtol=1e-5)


@pytest.mark.parametrize(
    "example", [ROWS, jax.ShapeDtypeStruct((1, 4), jnp.float32), js.export.TensorSpec((None, 4), "float32")]
)
def test_raw_features_without_a_name(tmp_path, example):
    def bare(variables, features, labels, mode, params):
        return model_fn(variables, {"x": features}, labels, mode, params)

    estimator = trained(tmp_path / "model", bare, input_fn=lambda: [(ROWS[:8], np.zeros(8, np.int32))])
    receiver = js.export.build_raw_serving_input_receiver_fn(example)
    loaded = load(estimator.export_saved_model(tmp_path / "x", receiver))
    np.testing.assert_array_equal(loaded(input=ROWS)["class"], predicted(estimator, ROWS)["class"])


def test_open_dimensions(tmp_path):
    def pooled(variables, features, labels, mode, params):
        x = (features["x"] * features["mask"][..., None]).sum(1) / features["scale"].mean(-1, keepdims=True)
        return model_fn(variables, {"x": x}, labels, mode, params)

    def batch(rows, length):
        x = np.random.default_rng(1).normal(size=(rows, length, 4)).astype(np.float32)
        return {"x": x, "mask": np.ones((rows, length), np.float32), "scale": np.ones((rows, 2), np.float32)}

    estimator = trained(tmp_path / "model", pooled, input_fn=lambda: [(batch(8, 5), np.zeros(8, np.int32))])
    tensors = {"x": shape("length", 4), "mask": shape("length"), "scale": shape(None)}
    loaded = load(estimator.export_saved_model(tmp_path / "x", receiver_fn(**tensors)))
    for rows, length in ((3, 7), (8, 1)):
        arrays = batch(rows, length)
        np.testing.assert_array_equal(loaded(**arrays)["class"], predicted(estimator, arrays)["class"])
    with pytest.raises(
        ValueError, match=r"'mask' must be float32\[batch,length\], got float32\[3,6\] \(length is 7 in 'x'\)"
    ):
        loaded(**batch(3, 7) | {"mask": np.ones((3, 6), np.float32)})


# Models.


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.BatchNorm(use_running_average=False, axis_name=js.SHARD_AXIS)(x))


def test_the_axis_of_shards_is_bound(tmp_path):
    def normed(variables, features, mode):
        logits, _ = Normed().apply(variables, features["x"], mutable=["batch_stats"])
        mean = jax.lax.pmean(logits.mean(), js.SHARD_AXIS)
        predictions = {"logits": logits, "from_mean": logits - mean}
        return js.TPUEstimatorSpec(mode, loss=mean, predictions=predictions, train_op=js.minimize(optax.sgd(0.1)))

    init = lambda rng, features: Normed().init(rng, features["x"])  # noqa: E731
    estimator = trained(tmp_path / "model", normed, init, input_fn=lambda: {"x": ROWS[:8]})
    want = predicted(estimator, {"x": ROWS[:8]})
    path = estimator.export_saved_model(tmp_path / "x", receiver_fn())
    for devices in (1, 4):
        got = load(path, devices=jax.devices()[:devices])(x=ROWS[:8])
        for name in want:
            np.testing.assert_allclose(got[name], want[name], atol=1e-6)


NOT_ROWWISE = {
    "other rows": lambda x, rng: x - x.mean(0),
    "other rows, a little": lambda x, rng: x + 0.01 * x[0],
    "all shards": lambda x, rng: x - jax.lax.pmean(x.mean(), js.SHARD_AXIS),
    "its place": lambda x, rng: x + jnp.arange(x.shape[0])[:, None],
    "random numbers": lambda x, rng: x + jax.random.normal(rng, x.shape),
    "whole": lambda x, rng: x.sum(),
    "twice as many rows": lambda x, rng: jnp.concatenate([x, x]),
}


@pytest.mark.parametrize("outputs", NOT_ROWWISE.values(), ids=NOT_ROWWISE)
def test_a_batch_whose_rows_are_not_alone_is_computed_as_a_whole(tmp_path, caplog, outputs):
    def model(variables, features, labels, mode, params, rng):
        if mode == js.ModeKeys.PREDICT:
            exports = {
                "serving_default": PredictOutput(outputs(features["x"], rng)),
                "alone": PredictOutput({"x": features["x"] * 2, "as many as rows": jnp.arange(7)}),
            }
            return js.TPUEstimatorSpec(mode, predictions=features["x"], export_outputs=exports)
        return model_fn(variables, features, labels, mode, params)

    path = trained(tmp_path / "model", model).export_saved_model(tmp_path / "x", receiver_fn())
    one, four = (load(path, devices=jax.devices()[:n]) for n in (1, 4))
    np.testing.assert_allclose(four(x=ROWS)["output"], one(x=ROWS)["output"], rtol=1e-6)
    assert {name: signature.rowwise for name, signature in four.signatures.items()} == {
        "alone": True,
        "serving_default": False,
    }
    (warning,) = [record.getMessage() for record in caplog.records if "more than that row" in record.getMessage()]
    assert warning.startswith("What signature 'serving_default' returns for a row depends on more than that row: ")


def test_a_recurrent_network_over_time(tmp_path):
    class Recurrent(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.RNN(nn.LSTMCell(8))(x)[:, -1])

    def model(variables, features, mode):
        logits = Recurrent().apply(variables, features["x"])
        return js.TPUEstimatorSpec(
            mode, loss=logits.mean(), predictions={"logits": logits}, train_op=js.minimize(optax.sgd(0.1))
        )

    init = lambda rng, features: Recurrent().init(rng, features["x"])  # noqa: E731
    x = np.random.default_rng(2).normal(size=(8, 5, 4)).astype(np.float32)
    estimator = trained(tmp_path / "model", model, init, input_fn=lambda: {"x": x})
    loaded = load(estimator.export_saved_model(tmp_path / "x", receiver_fn(x=shape(None, 4))))
    for length in (5, 2):
        want = predicted(estimator, {"x": x[:, :length]})
        np.testing.assert_allclose(loaded(x=x[:, :length])["logits"], want["logits"], rtol=1e-5)


def test_weights_of_all_kinds(tmp_path):
    kinds = {
        "bfloat16": lambda: jnp.full((4,), 1.5, jnp.bfloat16),
        "float16": lambda: jnp.full((4,), 1.5, jnp.float16),
        "int8": lambda: jnp.arange(4, dtype=jnp.int8),
        "bool": lambda: jnp.array([True, False, True, True]),
        "complex64": lambda: jnp.full((4,), 1 + 2j, jnp.complex64),
        "empty": lambda: jnp.zeros((4, 0)),
        "scalar": lambda: jnp.float32(3.0),
        "a/b": lambda: jnp.full((4,), 2.0),
    }

    def init(rng):
        return init_fn(rng) | {"kinds": {name: make() for name, make in kinds.items()} | {"key": jax.random.key(7)}}

    def outputs(logits, features):
        return {"a": PredictOutput(logits)}

    def model(variables, features, labels, mode, params):
        if mode == js.ModeKeys.PREDICT:
            of = variables["kinds"]
            names = ("bfloat16", "float16", "int8", "bool", "a/b")
            total = sum(of[name].astype(jnp.float32) for name in names) + jnp.abs(of["complex64"]) + of["scalar"]
            total = total + of["empty"].sum() + jax.random.normal(of["key"], (4,))
            return js.TPUEstimatorSpec(mode, predictions=features["x"] * total)
        return model_fn(variables, features, labels, mode, params)

    estimator = trained(tmp_path / "model", model, init)
    path = estimator.export_saved_model(tmp_path / "x", receiver_fn())
    want = np.stack(list(estimator.predict(lambda: {"x": ROWS})))
    np.testing.assert_array_equal(load(path)(x=ROWS)["output"], want)
    # The same from a checkpoint, in another process' place.
    again = js.TPUEstimator(model, init, model_dir=tmp_path / "model", params={}, predict_batch_size=8)
    path = again.export_saved_model(tmp_path / "x", receiver_fn())
    np.testing.assert_array_equal(load(path)(x=ROWS)["output"], want)


def test_a_dtype_that_the_file_cannot_hold(tmp_path):
    def init(rng):
        return init_fn(rng) | {"small": {"a": jnp.zeros(3, jnp.float8_e4m3fn)}}

    estimator = trained(tmp_path / "model", init_fn=init)
    with pytest.raises(
        ValueError, match=r"small/a has dtype float8_e4m3fn, which a file of safetensors cannot hold. .*convert it"
    ):
        estimator.export_saved_model(tmp_path / "x", receiver_fn())


def test_a_model_that_reads_the_optimizer_state_and_draws_numbers(tmp_path, caplog):
    def model(variables, features, labels, mode, params, opt_state=None, rng=None, step=None):
        if mode == js.ModeKeys.PREDICT:
            noise = jax.random.normal(rng, features["x"].shape)
            return js.TPUEstimatorSpec(mode, predictions=features["x"] * opt_state[0].trace["b"].sum() + noise + step)
        loss = (features["x"] @ variables["params"]["w"]).mean() + variables["params"]["b"].sum()
        return js.TPUEstimatorSpec(mode, loss=loss, train_op=js.minimize(optax.sgd(0.1, momentum=0.9)))

    estimator = trained(tmp_path / "model", model)
    path = estimator.export_saved_model(tmp_path / "x", receiver_fn())
    assert "model_fn uses `rng` in PREDICT: each call of the export draws the same random numbers" in caplog.text
    want = np.stack(list(estimator.predict(lambda: {"x": ROWS[:8]})))
    np.testing.assert_allclose(load(path, devices=jax.devices()[:1])(x=ROWS[:8])["output"], want, rtol=1e-6)


def test_bfloat16_and_small_integers_go_in_and_out(tmp_path):
    def model(variables, features, labels, mode, params):
        if mode == js.ModeKeys.PREDICT:
            rows = features["half"].reshape(params["batch_size"], -1)
            return js.TPUEstimatorSpec(mode, predictions={"half": rows * 2, "small": features["small"]})
        return model_fn(variables, features, labels, mode, params)

    estimator = trained(tmp_path / "model", model)
    tensors = {"half": shape(4, dtype=jnp.bfloat16), "small": shape(dtype=jnp.int8)}
    loaded = load(estimator.export_saved_model(tmp_path / "x", receiver_fn(**tensors)))
    got = loaded(half=ROWS, small=np.arange(24))
    assert {name: array.dtype for name, array in got.items()} == {"half": jnp.bfloat16, "small": jnp.int8}
    np.testing.assert_array_equal(got["half"], 2 * ROWS.astype(jnp.bfloat16))
    np.testing.assert_array_equal(got["small"], np.arange(24))


def test_an_export_while_a_hook_holds_the_training(tmp_path):
    class Exports(js.hooks.SessionRunHook):
        paths = ()

        def after_run(self, context, values):
            self.paths = (*self.paths, estimator.export_saved_model(tmp_path / "x", receiver_fn()))

    estimator, hook = trained(tmp_path / "model"), Exports()
    estimator.train(lambda: [({"x": ROWS[:8]}, np.zeros(8, np.int32))] * 2, max_steps=3, hooks=[hook])
    assert [load(path).content["global_step"] for path in hook.paths] == [3]
    np.testing.assert_array_equal(load(hook.paths[0])(x=ROWS)["class"], predicted(estimator, {"x": ROWS})["class"])


# Batch sizes.


def halves(variables, features, labels, mode, params):
    """A model that needs the number of rows as a number."""
    if mode == js.ModeKeys.PREDICT:
        x = np.zeros(features["x"].shape[0], np.float32) + features["x"][:, 0]
        return js.TPUEstimatorSpec(mode, predictions={"first": x})
    return model_fn(variables, features, labels, mode, params)


def test_a_model_without_a_symbolic_form_is_refused_with_its_line(tmp_path):
    estimator = trained(tmp_path / "model", halves)
    with pytest.raises(ValueError, match=r"has no form for open sizes \(x: float32\[batch,4\]\)") as caught:
        estimator.export_saved_model(tmp_path / "x", receiver_fn())
    message = str(caught.value)
    assert '`x = np.zeros(features["x"].shape[0], np.float32) + features["x"][:, 0]`' in message
    assert re.search(r"test_export.py:\d+\)", message)
    assert "batch_sizes=[1, 8, 64]" in message
    assert not (tmp_path / "x").exists() or os.listdir(tmp_path / "x") == []


@pytest.mark.parametrize("sizes", [[2, 8], [8], np.array([8, 2, 8])])
def test_fixed_batch_sizes(tmp_path, sizes):
    estimator = trained(tmp_path / "model", halves)
    path = estimator.export_saved_model(tmp_path / "x", receiver_fn(), batch_sizes=sizes)
    loaded = load(path)
    signature = loaded.signatures["serving_default"]
    assert signature.batch_sizes == sorted({*map(int, sizes)})
    assert signature.inputs["x"]["shape"] == ["batch", 4]
    assert signature.outputs["first"]["shape"] == ["batch"]
    np.testing.assert_array_equal(loaded(x=ROWS[:8])["first"], ROWS[:8, 0])
    assert len(loaded(x=ROWS[:8])["first"].devices()) == (4 if 2 in sizes else 1)  # two rows for each of four devices
    with pytest.raises(ValueError, match=r"exported for batches of \[.*\] rows alone, got 3. Pad the batch"):
        loaded(x=ROWS[:3])


@pytest.mark.parametrize(
    ("sizes", "error"),
    [
        ([], ValueError),
        ([0], ValueError),
        (["8"], TypeError),
        (8.5, TypeError),
        ([[8]], TypeError),
        ([None], TypeError),
    ],
)
def test_wrong_batch_sizes(estimator, tmp_path, sizes, error):
    with pytest.raises(error, match=r"each of batch_sizes should be .* Write batch_sizes=\[1, 8, 64\]"):
        estimator.export_saved_model(tmp_path, receiver_fn(), batch_sizes=sizes)
