"""The program of the README: one model_fn that trains, evaluates and predicts."""

import flax.linen as nn
import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

import jaxspec as js


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(nn.relu(nn.Dense(128)(x)))


def metric_fn(labels, logits):  # on the host: NumPy arrays of the whole batch
    return {"accuracy": js.metrics.accuracy(labels, np.argmax(logits, -1))}


def model_fn(variables, features, labels, mode, params):  # on each device: its share of the batch
    logits = Net().apply(variables, features)
    predictions = {"class": logits.argmax(-1), "probabilities": jax.nn.softmax(logits)}
    if mode == js.ModeKeys.PREDICT:
        return js.TPUEstimatorSpec(mode, predictions=predictions)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return js.TPUEstimatorSpec(
        mode,
        loss=loss,
        train_op=js.minimize(optax.adam(params["learning_rate"])),
        eval_metrics=(metric_fn, [labels, logits]),
        host_call=js.summary.host_call(loss=loss),
    )


x, y = load_digits(return_X_y=True)
x, y = (x / 16).astype(np.float32), y.astype(np.int32)
x_train, y_train, x_test, y_test = x[300:], y[300:], x[:300], y[:300]

estimator = js.TPUEstimator(
    model_fn,
    init_fn=Net(),
    model_dir="runs/quickstart",
    params={"learning_rate": 1e-3},
    train_batch_size=64,
    eval_batch_size=128,
    predict_batch_size=128,
)
estimator.train(js.inputs.numpy_input_fn(x_train, y_train, num_epochs=None, shuffle=True), max_steps=1000)

results = estimator.evaluate(js.inputs.numpy_input_fn(x_test, y_test))
print(f"step {results['global_step']}: loss {results['loss']:.2f}, accuracy {results['accuracy']:.2f}")
for example, label in zip(estimator.predict(js.inputs.numpy_input_fn(x_test[:3])), y_test[:3], strict=True):
    print(f"predicted {example['class']} with {example['probabilities'].max():.0%}, label {label}")
