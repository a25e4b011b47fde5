"""The lines of docs/migrating.md that say how TensorFlow's updates are written here do what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_models import run_config

import jaxspec as js

X = np.array([0.5, 0.5, 9, 9], np.float32)


def trained(tmp_path, train_op_of, **params):
    """The estimator after one step on two shards."""

    def model_fn(variables, features, mode):
        return js.TPUEstimatorSpec(mode, loss=features.mean(), train_op=train_op_of(variables, features))

    estimator = js.TPUEstimator(
        model_fn,
        lambda: {"params": {name: jnp.float32(value) for name, value in params.items()}},
        model_dir=tmp_path,
        config=run_config(num_shards=2),
        train_batch_size=4,
    )
    return estimator.train(lambda: [X], steps=1)


def test_gradients_clipped_in_model_fn_are_clipped_on_each_shard(tmp_path):
    def of_shards(variables, features):
        grads = jax.grad(lambda params: (params["w"] * features).mean())(variables["params"])
        return js.apply_gradients(optax.sgd(1.0), optax.projections.projection_l2_ball(grads, 1.0))

    def of_the_batch(variables, features):
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0))
        return js.minimize(optimizer, lambda variables: (variables["params"]["w"] * features).mean())

    clipped = [
        trained(tmp_path / op.__name__, op, w=0.0).variables()["params"]["w"] for op in (of_shards, of_the_batch)
    ]
    np.testing.assert_allclose(clipped, [-(0.5 + 1) / 2, -1])


@pytest.mark.parametrize("grouped", [True, False])
def test_a_group_sees_the_variables_before_the_step_and_a_sequence_those_in_between(tmp_path, grouped):
    def product(variables):
        return variables["params"]["d"] * variables["params"]["g"]

    def train_op(variables, features):
        if not grouped:
            return [js.minimize(optax.sgd(1.0), product, of=name) for name in "dg"]
        grads = jax.grad(lambda params: product({"params": params}))(variables["params"])
        return [js.apply_gradients(optax.sgd(1.0), {name: grads[name]}, of=name) for name in "dg"]

    estimator = trained(tmp_path, train_op, d=1.0, g=2.0)
    d = 1 - 2
    assert estimator.variables()["params"] == {"d": d, "g": 2 - (1 if grouped else d)}
    assert estimator.get_variable_value("global_step") == 1


def test_a_piecewise_constant_rate_changes_after_the_boundary():
    schedule = optax.piecewise_constant_schedule(0.1, {1001: 0.1})
    np.testing.assert_allclose([schedule(step) for step in (0, 1000, 1001)], [0.1, 0.1, 0.01], rtol=1e-6)


def test_the_l2_loss_of_all_parameters_but_those_of_batch_norm():
    params = {"BatchNorm_0": {"scale": jnp.ones(3)}, "Dense_0": {"kernel": jnp.array([1.0, 2.0]), "bias": jnp.ones(1)}}
    loss = sum(jnp.sum(v**2) / 2 for name, v in js.named_leaves(params).items() if "BatchNorm" not in name)
    assert loss == (1 + 4 + 1) / 2


def test_averages_of_parameters_and_statistics_follow_both_and_are_what_other_modes_use(tmp_path):
    averages = js.ExponentialMovingAverage(0.99, of=("params", "batch_stats"))
    init_fn = averages.init(lambda: {"params": {"w": jnp.float32(1)}, "batch_stats": {"mean": jnp.float32(0)}})

    def model_fn(variables, features, mode, step):
        if mode != js.ModeKeys.TRAIN:
            variables = averages.apply(variables)
        w, mean = variables["params"]["w"], variables["batch_stats"]["mean"]
        updates = {"batch_stats": {"mean": 0.5 * mean + 0.5 * features.mean()}}
        train_op = js.minimize(optax.sgd(0.1), updates=updates, after=averages.update(step + 1))
        predictions = {"w": jnp.full(len(features), w), "mean": jnp.full(len(features), mean)}
        return js.TPUEstimatorSpec(mode, loss=w * features.mean(), train_op=train_op, predictions=predictions)

    config = run_config(num_shards=2)
    sizes = dict(train_batch_size=4, predict_batch_size=4)
    estimator = js.TPUEstimator(model_fn, init_fn, model_dir=tmp_path, config=config, **sizes)
    estimator.train(lambda: [X] * 3)
    values = np.array([1, 0], np.float32)  # w, mean
    expected = values
    for step in (1, 2, 3):
        values = np.array([values[0] - 0.1 * X.mean(), 0.5 * values[1] + 0.5 * X.mean()])
        decay = min(0.99, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * values
    (example, *_) = estimator.predict(lambda: [X])
    np.testing.assert_allclose([example["w"], example["mean"]], expected, rtol=1e-5)


def test_averages_begin_with_pretrained_weights_by_a_scaffold(tmp_path):
    averages = js.ExponentialMovingAverage(0.99)
    start = js.checkpoint.save(
        tmp_path / "old", js.TrainState(jnp.int32(0), {"params": {"w": jnp.float32(5)}}, {}, jax.random.key(0))
    )

    def model_fn(variables, features, mode):
        scaffold = js.Scaffold(lambda variables: {**variables, "ema": {"params": variables["params"]}})
        loss = averages.apply(variables)["params"]["w"] * features.mean()
        return js.TPUEstimatorSpec(mode, loss=loss, train_op=js.minimize(optax.sgd(1.0)), scaffold_fn=lambda: scaffold)

    settings = js.WarmStartSettings(start, "params/")
    init_fn = averages.init(lambda: {"params": {"w": jnp.float32(0)}})
    estimator = js.TPUEstimator(
        model_fn, init_fn, model_dir=tmp_path / "new", eval_batch_size=4, warm_start_from=settings
    )
    assert estimator.evaluate(lambda: [X])["loss"] == 5 * X.mean()


def test_the_batch_size_of_model_fn_is_that_of_a_shard_and_metric_fn_gets_all_rows(tmp_path):
    seen = []

    def model_fn(variables, features, mode, params):
        def metric_fn(features):
            seen.append((params["batch_size"], len(features)))

        return js.TPUEstimatorSpec(mode, loss=features.mean(), eval_metrics=(metric_fn, [features]))

    config = run_config(num_shards=2)
    init_fn = lambda: {"params": {}}  # noqa: E731
    js.TPUEstimator(model_fn, init_fn, model_dir=tmp_path, config=config, eval_batch_size=4).evaluate(lambda: [X])
    assert seen == [(2, 4)]
