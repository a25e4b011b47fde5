"""A model_fn that is compiled again and again is reported once, with what changed."""

import jax
import numpy as np
import optax
import pytest
from tiny_models import batches, data, linear_init, linear_model_fn, run_config

import jaxspec as js

X, Y = data(rows=64)
SIZES = dict.fromkeys(("train_batch_size", "eval_batch_size", "predict_batch_size"), 8)


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if "compiled again and again" in r.getMessage()]


def mean_model_fn(variables, features, mode):
    """Takes rows of any width."""
    loss = (features.mean(-1) * variables["params"]["b"][0]).mean()
    return js.TPUEstimatorSpec(
        mode, predictions=features, loss=loss, train_op=js.minimize(optax.sgd(0.1)), eval_metrics=None
    )


def estimator(model_dir, model_fn=linear_model_fn, **kwargs):
    return js.TPUEstimator(
        model_fn, linear_init, model_dir=model_dir, config=run_config(num_shards=1), **{**SIZES, **kwargs}
    )


@pytest.mark.parametrize("verb", ["train", "evaluate", "predict"])
def test_each_call_with_another_shape(tmp_path, caplog, verb):
    model = estimator(tmp_path, mean_model_fn)
    for width in (3, 4, 5, 6, 7):
        input_fn = js.inputs.numpy_input_fn(np.ones((8, width), np.float32))
        called = getattr(model, verb)(input_fn)
        if verb == "predict":
            list(called)
    (said,) = warnings(caplog)
    mode = {"train": "train", "evaluate": "eval", "predict": "infer"}[verb]
    assert f"in mode '{mode}' for 3 kinds of arguments" in said
    assert "features: float32[8,5], was float32[8,4]. Each kind costs a compilation." in said
    assert "pad them" in said


def test_each_batch_with_another_number_of_rows(tmp_path, caplog):
    sizes = [8, 5, 7, 3, 6]
    estimator(tmp_path, use_tpu=False).train(lambda: ((X[:n], Y[:n]) for n in sizes))
    (said,) = warnings(caplog)
    assert "features: float32[7,4], was float32[5,4]; labels: int32[7], was int32[5]" in said


def test_in_a_loop_of_ones_own(caplog):
    step = js.replicate(js.make_train_step(linear_model_fn), jax.devices()[:1])
    state = js.create_train_state(linear_model_fn, linear_init, jax.random.key(0), X[:8], Y[:8])
    for dtype in (np.float32, np.float16, np.int32, np.int8):
        state, _ = step(state, *js.shard((X[:8].astype(dtype), Y[:8]), 1))
    (said,) = warnings(caplog)
    assert "features: int32[8,4], was float16[8,4]" in said


def test_a_full_and_a_short_batch_in_every_mode_are_no_news(tmp_path, caplog):
    model = estimator(tmp_path)
    x, y = X[:20], Y[:20]
    for _ in range(3):
        model.train(lambda: batches(X, Y, size=8))
        model.evaluate(lambda: batches(x, y, size=8))
        list(model.predict(lambda: batches(x, y, size=8)))
    assert warnings(caplog) == []


@pytest.mark.slow(reason="without jit every operation is dispatched, and compiled, by itself")
def test_without_jit_nothing_is_compiled(tmp_path, caplog):
    """Slow: JAX compiles each operation by itself, for each number of rows."""
    with jax.disable_jit():
        estimator(tmp_path, use_tpu=False).train(lambda: ((X[:n], Y[:n]) for n in (8, 5, 7, 3, 6)))
    assert warnings(caplog) == []
