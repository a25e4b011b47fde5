"""A model_fn with annotations: a spec, metrics, several TrainOps."""

from typing import Any, assert_type

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxspec as js


class Net(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(10)(x)


def metric_fn(labels: np.ndarray, logits: np.ndarray) -> dict[str, js.metrics.Metric]:
    return {"accuracy": js.metrics.accuracy(labels, logits.argmax(-1))}


def write_summaries(loss: np.ndarray) -> None:
    js.summary.scalar("mean_loss", loss.mean())


def model_fn(
    variables: dict[str, Any], features: jax.Array, labels: jax.Array | None, mode: js.Mode, params: dict[str, Any]
) -> js.TPUEstimatorSpec:
    logits = jnp.asarray(Net().apply(variables, features))
    if mode == js.ModeKeys.PREDICT:
        return js.TPUEstimatorSpec(mode, predictions={"class": logits.argmax(-1)})
    loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
    spec = js.TPUEstimatorSpec(
        mode,
        loss=loss,
        train_op=js.minimize(optax.adam(params["learning_rate"])),
        eval_metrics=(metric_fn, [labels, logits]),
        host_call=js.fetches((write_summaries, {"loss": loss}), rate=loss / 10),
        scaffold_fn=lambda: js.Scaffold(init_fn=lambda fresh: fresh),
        training_hooks=[js.hooks.NanTensorHook("loss")],
    )
    assert_type(spec._replace(loss=loss * 2), js.TPUEstimatorSpec)
    return spec


def gan_model_fn(variables: dict[str, Any], features: jax.Array, mode: js.Mode) -> js.TPUEstimatorSpec:
    def loss_fn(variables: dict[str, Any]) -> tuple[jax.Array, dict[str, Any]]:
        return jnp.sum(variables["params"]["critic"]), {"batch_stats": variables["batch_stats"]}

    ema = js.ExponentialMovingAverage(0.99)
    train_op = [
        js.minimize(optax.sgd(0.1), loss_fn, of="critic", after=ema.update()),
        js.minimize(js.CrossShardOptimizer(optax.sgd(0.1), "sum"), of=lambda path: path.startswith("generator/")),
        js.apply_gradients(optax.sgd(0.1), variables["params"], updates={"batch_stats": {}}),
        js.CrossShardOptimizer(optax.sgd(0.1)).minimize(loss_fn, of=["critic"], reduction="mean"),
    ]
    assert_type(train_op, list[js.TrainOp])
    return js.TPUEstimatorSpec(mode, loss=features.mean(), train_op=train_op)


def by_hand() -> None:
    """A user's own unit test of a model_fn."""
    spec = gan_model_fn({}, jnp.ones(2), js.ModeKeys.EVAL).as_estimator_spec()
    assert_type(spec, js.EstimatorSpec)
    assert_type(spec.scaffold, js.Scaffold)
    assert spec.eval_metric_ops["accuracy"].compute() > 0.5
    assert len(spec.training_hooks) == 1
