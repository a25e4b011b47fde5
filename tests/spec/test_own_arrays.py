"""What host functions are given, and what predict yields, may be written to; nobody else sees it."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxspec as js

X = np.arange(24, dtype=np.float32)


def clears(seen, name):
    def fn(values, again):
        seen.append((name, values.copy(), again.copy()))
        values[...] = -1
        again[again > 3] = -2
        return {"mean": js.metrics.mean(values)}

    return fn


def make(model_dir, seen, shards):
    def model_fn(variables, features, mode):
        w = variables["params"]["w"]
        if mode == js.ModeKeys.PREDICT:
            return js.TPUEstimatorSpec(
                mode, predictions={"a": features[:, None] * jnp.ones(2), "b": features, "c": features}
            )
        return js.TPUEstimatorSpec(
            mode,
            loss=features.mean() * w,
            train_op=js.minimize(optax.sgd(0.0)),
            eval_metrics=(clears(seen, "metric_fn"), {"values": features, "again": features}),
            host_call=(clears(seen, "host_call"), {"values": features, "again": features}),
        )

    return js.TPUEstimator(
        model_fn,
        lambda: {"params": {"w": jnp.ones(())}},
        model_dir=model_dir,
        config=js.RunConfig(js.TPUConfig(num_shards=shards)),
        train_batch_size=8,
        eval_batch_size=8,
        predict_batch_size=8,
    )


class Fetches(js.hooks.SessionRunHook):
    def __init__(self):
        self.fetched = []

    def before_run(self, run_context):
        return js.hooks.SessionRunArgs(["values", "again"])

    def after_run(self, run_context, run_values):
        self.fetched += run_values.results


@pytest.mark.parametrize("shards", [1, 4])
def test_each_host_function_has_arrays_of_its_own(tmp_path, shards):
    seen, hook = [], Fetches()
    pieces = [X[:8], X[8:16], X[16:23]]  # the last is short
    result = make(tmp_path, seen, shards).evaluate(lambda: pieces, hooks=[hook])
    assert result["mean"] == -1
    assert [name for name, *_ in seen] == ["metric_fn", "host_call"] * 3
    for number, piece in enumerate(pieces):
        for _, values, again in seen[2 * number : 2 * number + 2]:
            np.testing.assert_array_equal(values, piece)
            np.testing.assert_array_equal(again, piece)
        for values in hook.fetched[2 * number : 2 * number + 2]:
            np.testing.assert_array_equal(values, piece)
    np.testing.assert_array_equal(X, np.arange(24))


def test_also_in_training(tmp_path):
    seen, hook = [], Fetches()
    make(tmp_path, seen, 4).train(lambda: [X[:8], X[8:16], X[16:]], hooks=[hook])
    for number in range(3):
        _, values, again = seen[number]
        np.testing.assert_array_equal(values, X[8 * number : 8 * number + 8])
        np.testing.assert_array_equal(again, values)
    for values in hook.fetched:
        assert values.min() >= 0


def test_also_by_hand():
    x = jnp.arange(4.0)
    mine = np.arange(4.0)

    def metric_fn(x, y):
        x += 1
        y += 1
        return {"m": js.metrics.mean(x + y)}

    spec = js.TPUEstimatorSpec(js.ModeKeys.EVAL, loss=jnp.zeros(()), eval_metrics=(metric_fn, [x, mine]))
    assert spec.as_estimator_spec().eval_metric_ops["m"].compute() == 5
    np.testing.assert_array_equal(mine, np.arange(4.0))


@pytest.mark.parametrize("single", [True, False])
def test_predictions_are_the_callers_own(tmp_path, single):
    got = []
    for prediction in make(tmp_path, [], 4).predict(lambda: [X[:8], X[8:15]], yield_single_examples=single):
        got += np.atleast_1d(prediction["c"]).tolist()
        prediction["a"] *= 0
        if not single:
            prediction["b"] -= 1
    np.testing.assert_array_equal(got, X[:15])
