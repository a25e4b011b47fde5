"""NaN losses that a user means to skip."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_models import run_config

import jaxspec as js
from jaxspec.checkpoint import checkpoint_steps

BAD = (3, 5)
"""The batches that are NaN."""


def model_fn(variables, features, mode):
    loss = ((variables["params"]["w"] - features) ** 2).mean()
    return js.TPUEstimatorSpec(mode, loss=loss, train_op=js.minimize(optax.apply_if_finite(optax.sgd(0.25), 50)))


def estimator(model_dir, every=100, save=4, model_fn=model_fn, **kwargs):
    return js.TPUEstimator(
        model_fn,
        lambda: {"params": {"w": jnp.zeros(())}},
        model_dir=model_dir,
        config=run_config(save=save, every=every, num_shards=1, **kwargs),
        train_batch_size=8,
    )


def input_fn(bad=BAD, count=10):
    def make():
        return [np.full(8, np.nan if i in bad else 1.0, np.float32) for i in range(count)]

    return make


def expected(steps=10, bad=BAD):
    w = 0.0
    for i in range(steps):
        w = w if i in bad else w - 0.25 * 2 * (w - 1.0)
    return w


@pytest.mark.parametrize("every", [1, 100])
def test_training_goes_on_after_nan_losses_that_the_optimizer_skips(tmp_path, caplog, every):
    made = estimator(tmp_path, every, fail_on_nan_loss=False)
    made.train(input_fn(), max_steps=10)
    assert made.get_variable_value("global_step") == 10
    assert made.get_variable_value("params/w") == pytest.approx(expected(), abs=1e-6)
    assert checkpoint_steps(tmp_path) == [0, 4, 8, 10]
    assert "NaN loss at step 3 (counted from 0)" in caplog.text
    assert "2 of the 10 steps of this run had a NaN loss" in caplog.text


def test_the_warning_of_many_nan_losses_counts_them_and_is_not_given_for_each(tmp_path, caplog):
    bad = range(2, 32)
    estimator(tmp_path, 1, fail_on_nan_loss=False).train(input_fn(bad, 40), max_steps=40)
    assert caplog.text.count("NaN loss at step") == 2  # the first one, and the tenth
    assert "30 of the 40 steps of this run had a NaN loss" in caplog.text


def test_without_it_the_error_says_what_to_write(tmp_path):
    with pytest.raises(js.hooks.NanLossDuringTrainingError, match="at step 3") as caught:
        estimator(tmp_path).train(input_fn(), max_steps=10)
    assert "RunConfig(fail_on_nan_loss=False) goes on" in str(caught.value)


def test_a_checkpoint_is_still_refused_with_a_weight_that_is_not_finite(tmp_path):
    def careless(variables, features, mode):
        loss = ((variables["params"]["w"] - features) ** 2).mean()
        return js.TPUEstimatorSpec(mode, loss=loss, train_op=js.minimize(optax.sgd(0.25)))

    with pytest.raises(js.hooks.NanLossDuringTrainingError, match="params/w"):
        estimator(tmp_path, model_fn=careless, fail_on_nan_loss=False).train(input_fn(), max_steps=10)
    assert checkpoint_steps(tmp_path) == [0]


def test_a_nan_tensor_hook_that_does_not_fail_stops_as_in_tensorflow(tmp_path):
    made = estimator(tmp_path, 1, fail_on_nan_loss=False)
    made.train(input_fn(), max_steps=10, hooks=[js.hooks.NanTensorHook("loss", fail_on_nan_loss=False)])
    assert made.get_variable_value("global_step") == 4  # the loop of step 3 is the last


def test_it_is_true_or_false():
    assert js.RunConfig().fail_on_nan_loss is True
    with pytest.raises(TypeError, match="fail_on_nan_loss must be True or False, got 'no'"):
        js.RunConfig(fail_on_nan_loss="no")
