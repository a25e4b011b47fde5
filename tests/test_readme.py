"""The README says what is: the program is the example, the output real, the messages the library's."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxspec as js

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
QUICKSTART = ROOT / "examples" / "quickstart.py"
NUMBER = r"\d+(?:\.\d+)?"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_program_is_the_example():
    assert QUICKSTART.read_text() in blocks("python")


def test_the_output_beside_it_is_the_real_one(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, QUICKSTART],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    shown = next(block for block in blocks("text") if "predicted" in block)
    assert re.sub(NUMBER, "#", done.stdout) == re.sub(NUMBER, "#", shown)
    # Another CPU rounds otherwise.
    printed = [float(number) for number in re.findall(NUMBER, done.stdout)]
    np.testing.assert_allclose(printed, [float(n) for n in re.findall(NUMBER, shown)], rtol=0.05, atol=0.03)


def linear(size):
    """(model_fn, init_fn) of a linear classifier with `size` classes."""

    def init_fn(features):
        return {"params": {"kernel": jnp.zeros((features.shape[-1], size))}}

    def model_fn(variables, features, labels, mode):
        logits = features @ variables["params"]["kernel"]
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return js.TPUEstimatorSpec(mode, loss=loss, train_op=js.minimize(optax.sgd(0.1)))

    return model_fn, init_fn


def batch(rows=8, columns=64):
    return np.zeros((rows, columns), np.float32), np.zeros(rows, np.int32)


def estimator(model_dir, size=10, shards=1):
    model_fn, init_fn = linear(size)
    config = js.RunConfig(js.TPUConfig(num_shards=shards), save_checkpoints_steps=100)
    return js.TPUEstimator(model_fn, init_fn, model_dir=model_dir, config=config, train_batch_size=8)


def a_metric_fn_that_uses_an_array_of_model_fn(model_dir):
    def model_fn(features, labels, mode):
        def metric_fn(logits):
            return {"accuracy": js.metrics.accuracy(labels, np.argmax(logits, -1))}

        return js.TPUEstimatorSpec(mode, loss=features.mean(), eval_metrics=(metric_fn, [features]))

    js.TPUEstimator(model_fn, lambda: {"params": {}}, model_dir=model_dir, use_tpu=False).evaluate(lambda: batch())


def a_batch_of_another_shape(model_dir):
    estimator(model_dir).train(lambda: [batch(), batch(), batch(columns=65)], max_steps=3)


def a_model_dir_of_another_model(model_dir):
    estimator(model_dir).train(lambda: [batch()], steps=1)
    estimator(model_dir, size=12).train(lambda: [batch()], steps=1)


@pytest.mark.parametrize(
    ("mistake", "number"),
    [
        (a_metric_fn_that_uses_an_array_of_model_fn, 0),
        (a_batch_of_another_shape, 1),
        (a_model_dir_of_another_model, 2),
    ],
)
def test_the_error_messages_are_the_real_ones(tmp_path, monkeypatch, mistake, number):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"\w+") as raised:
        mistake("runs/digits")
    shown = [block for block in blocks("text") if block.startswith("ValueError: ")]
    message = f"ValueError: {raised.value}".replace(str(tmp_path) + os.sep, "")
    # The README breaks the lines.
    assert shown[number].split() == message.split()
