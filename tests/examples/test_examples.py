"""The examples, shrunk."""

import pathlib
import re

import digits
import jax
import numpy as np
import own_loop
import pytest

import jaxspec as js

README = pathlib.Path(__file__).parents[2] / "README.md"


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    everything = digits.load_digits()
    (x_train, y_train), (x_test, y_test) = everything
    few = (x_train[:256], y_train[:256]), (x_test[:64], y_test[:64])
    for module in (digits, own_loop):
        monkeypatch.setattr(module, "load_digits", lambda: few)
    return everything


@pytest.mark.slow(reason="the example compiles a network for images, and trains it")
def test_digits_trains_then_resumes_then_is_finished(tmp_path, capsys):
    results = digits.main(steps=8, shards=2, model_dir=tmp_path / "model")
    out = capsys.readouterr().out
    assert results["global_step"] == 8
    assert "Training on 256 images; 64 are held out." in out
    assert f"Held-out accuracy after 8 steps: {results['accuracy']:.4f}" in out
    assert f"Checkpoints: {tmp_path / 'model'}" in out
    assert f"tensorboard --logdir {tmp_path / 'model'}" in out

    assert digits.main(steps=12, shards=2, model_dir=tmp_path / "model")["global_step"] == 12
    assert "Resuming from step 8:" in capsys.readouterr().out

    assert digits.main(steps=12, shards=2, model_dir=tmp_path / "model")["global_step"] == 12
    assert "Finished already:" in capsys.readouterr().out


@pytest.mark.slow(reason="the example compiles a network for images, and trains it")
def test_digits_exports_what_the_readme_loads(tmp_path, capsys, few_rows):
    digits.main(steps=8, shards=2, model_dir=tmp_path / "model", export=True)
    path = re.search("^Export: (.*)$", capsys.readouterr().out, re.MULTILINE)[1]
    images, _ = digits.load_digits()[1]
    (lines,) = re.findall(r"```pycon\n(.*?)```", README.read_text(), re.DOTALL)
    *load, call = [line.strip().removeprefix(">>> ") for line in lines.strip().splitlines()]
    names = {"path": path, "images": images}
    exec("\n".join(load), names)
    got = eval(call, names)
    sizes = {"model_dir": tmp_path / "model", "params": digits.PARAMS, "predict_batch_size": 64}
    estimator = js.TPUEstimator(digits.model_fn, digits.INIT_FN, **sizes)
    want = [example["class"] for example in estimator.predict(js.inputs.numpy_input_fn(images))]
    np.testing.assert_array_equal(got, want)
    for devices in (1, 4):
        loaded = js.export.load(path, devices=jax.devices()[:devices])
        np.testing.assert_array_equal(loaded(image=images)["class"], want)


@pytest.mark.slow(reason="the example compiles a network for images, and trains it")
def test_digits_learns_on_the_cpu_fallback(tmp_path):
    results = digits.main(steps=60, model_dir=tmp_path / "model", cpu_fallback=True)
    assert results["accuracy"] >= 0.8


def test_the_model_fn_of_digits_can_be_called_by_hand(few_rows):
    (images, labels), _ = few_rows
    images, labels = images[:32], labels[:32]
    variables = digits.INIT_FN(rng=jax.random.key(0), features=images, labels=labels, params={})
    spec = digits.model_fn(variables, images, labels, js.ModeKeys.EVAL, digits.PARAMS, 0, None)
    logits = digits.Net().apply(digits.AVERAGES.apply(variables), images)
    metrics = spec.as_estimator_spec().eval_metric_ops
    assert metrics["accuracy"].compute() == np.mean(np.argmax(logits, -1) == labels)


def test_digits_shows_images_as_text(few_rows):
    (images, _), _ = few_rows
    lines = digits.side_by_side(images[:3]).split("\n")
    assert len(lines) == 8
    assert all(set(line) <= set(digits.SHADES) for line in lines)
    assert max(len(line) for line in lines) <= 3 * 16 + 2 * 4
    assert len({line[20:36] for line in lines}) > 1


@pytest.mark.slow(reason="the example compiles a network for images, and trains it until it has learnt")
def test_own_loop_learns_on_several_devices(capsys):
    metrics = own_loop.main(steps=60, shards=3)
    assert metrics["accuracy"] >= 0.8
    assert capsys.readouterr().out.startswith("Running on 3 x cpu, 21 rows each.")
