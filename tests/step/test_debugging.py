"""Looking into a model: one step a loop, and `jax.disable_jit()`.

The tests without jit are slow: JAX compiles each operation by itself.
"""

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from insides import programs
from tiny_models import batches, data, linear_init, linear_model_fn

import jaxspec as js

X, Y = data(rows=24)


def estimator(model_dir, model_fn=linear_model_fn, init_fn=linear_init, **kwargs):
    config = js.RunConfig(js.TPUConfig(iterations_per_loop=1), save_checkpoints_steps=4)
    sizes = dict.fromkeys(("train_batch_size", "eval_batch_size", "predict_batch_size"), 8)
    return js.TPUEstimator(
        model_fn, init_fn, model_dir=model_dir, config=config, **{"use_tpu": False, **sizes, **kwargs}
    )


def every_batch():
    return batches(X, Y, size=8)


@pytest.mark.parametrize("use_tpu", [True, False])
def test_one_step_a_loop(tmp_path, use_tpu):
    loops = []

    class Hook(js.hooks.SessionRunHook):
        def after_run(self, run_context, run_values):
            loops.append((run_context.first_step, run_context.last_step))

    estimator(tmp_path, use_tpu=use_tpu).train(every_batch, hooks=[Hook()])
    assert loops == [(0, 0), (1, 1), (2, 2)]


@pytest.mark.slow(reason="without jit every operation is dispatched, and compiled, by itself")
def test_without_jit_model_fn_sees_values(tmp_path):
    seen = {}

    def model_fn(variables, features, labels, mode, step):
        assert not isinstance(features, jax.core.Tracer)
        assert isinstance(features, jax.Array)
        spec = linear_model_fn(variables, features, labels, mode)
        # In TRAIN these are being differentiated: stop_gradient gives their values.
        loss, w = jax.lax.stop_gradient((spec.loss, variables["params"]["w"]))
        if mode == js.ModeKeys.PREDICT:
            seen.setdefault(mode, []).append(np.asarray(spec.predictions["logits"]).sum())
        else:
            kernel = np.asarray(w)
            seen.setdefault(mode, []).append((int(step), float(loss), float(kernel.sum())))
        return spec

    with jax.disable_jit():
        debugged = estimator(tmp_path / "debugged", model_fn)
        debugged.train(every_batch, steps=2).train(every_batch, steps=1)
        results = debugged.evaluate(every_batch)
        rows = list(debugged.predict(every_batch))
    plain = estimator(tmp_path / "plain")
    losses = []

    class Losses(js.hooks.SessionRunHook):
        def after_run(self, run_context, run_values):
            losses.append(run_context.session.loss)

    plain.train(every_batch, steps=2, hooks=[Losses()]).train(every_batch, steps=1, hooks=[Losses()])
    # Before a step the shapes are learnt by calling model_fn, too.
    steps = {step: loss for step, loss, _ in seen["train"]}
    np.testing.assert_allclose([steps[0], steps[1], steps[2]], losses, rtol=1e-5)
    assert results["loss"] == pytest.approx(plain.evaluate(every_batch)["loss"], rel=1e-5)
    np.testing.assert_allclose(
        [row["logits"] for row in rows], [row["logits"] for row in plain.predict(every_batch)], rtol=1e-4, atol=1e-5
    )
    # A restart, too.
    with jax.disable_jit():
        estimator(tmp_path / "debugged", model_fn).train(every_batch, max_steps=5)
    np.testing.assert_allclose(
        estimator(tmp_path / "debugged").get_variable_value("params/w"),
        plain.train(every_batch, max_steps=5).get_variable_value("params/w"),
        rtol=1e-4,
    )
    with pytest.raises(jax.errors.TracerArrayConversionError):
        estimator(tmp_path / "jitted", lambda variables, features, labels: np.asarray(features)).train(
            every_batch, steps=1
        )


@pytest.mark.slow(reason="without jit every operation is dispatched, and compiled, by itself")
def test_without_jit_a_model_that_uses_the_axis_is_mapped(tmp_path, caplog):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = nn.BatchNorm(use_running_average=not train, axis_name=js.SHARD_AXIS)(x)
            return nn.Dense(3)(x)

    def model_fn(variables, features, labels, mode):
        logits, updates = Net().apply(variables, features, train=True, mutable=["batch_stats"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return js.TPUEstimatorSpec(mode, loss=loss, train_op=js.minimize(optax.sgd(0.1), updates=updates))

    def train(model_dir):
        return estimator(model_dir, model_fn, Net()).train(every_batch).get_variable_value("params/Dense_0/kernel")

    with jax.disable_jit():
        debugged = train(tmp_path / "debugged")
    assert "jax.disable_jit: the code uses the axis 'shards'" in caplog.text
    np.testing.assert_allclose(debugged, train(tmp_path / "plain"), rtol=1e-4)


@pytest.mark.slow(reason="without jit every operation is dispatched, and compiled, by itself")
def test_a_run_without_jit_leaves_no_program_to_later_runs(tmp_path):
    model = estimator(tmp_path, use_tpu=True)
    with jax.disable_jit():
        model.train(every_batch, steps=1)
    model.train(every_batch, steps=1)
    # What was made without jit knows of no convolutions, and so of no loops.
    assert [program.single_step for program in programs(model)] == [True, False]
