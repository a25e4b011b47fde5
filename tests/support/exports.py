"""A model that exports, and what the tests of exports share."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxspec as js

ROWS = np.random.default_rng(0).normal(size=(24, 4)).astype(np.float32)


def init_fn(rng):
    return {"params": {"w": jax.random.normal(rng, (4, 3)), "b": jnp.zeros(3)}}


def model_fn(variables, features, labels, mode, params):
    """A linear classifier of `x`. `params["outputs"](logits, features)` makes its export_outputs."""
    logits = features["x"] @ variables["params"]["w"] + variables["params"]["b"]
    if mode == js.ModeKeys.PREDICT:
        predictions = {"class": logits.argmax(-1), "probabilities": jax.nn.softmax(logits)}
        outputs = params.get("outputs")
        exports = None if outputs is None else outputs(logits, features)
        return js.TPUEstimatorSpec(mode, predictions=predictions, export_outputs=exports)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return js.TPUEstimatorSpec(mode, loss=loss, train_op=js.minimize(optax.sgd(0.1)))


def train_input_fn():
    return [({"x": ROWS[:8]}, np.arange(8, dtype=np.int32) % 3)]


def trained(model_dir, model_fn=model_fn, init_fn=init_fn, input_fn=train_input_fn, shards=1, use_tpu=True, **params):
    """An estimator after one step."""
    config = js.RunConfig(js.TPUConfig(num_shards=shards), save_checkpoints_steps=100)
    sizes = {"train_batch_size": 8, "eval_batch_size": 8, "predict_batch_size": 8}
    kwargs = {"model_dir": model_dir, "config": config, "params": params, "use_tpu": use_tpu}
    estimator = js.TPUEstimator(model_fn, init_fn, **kwargs, **sizes)
    return estimator.train(input_fn, max_steps=1)


def shape(*dims, dtype=jnp.float32):
    """A receiver of a batch: `shape(4)` is `[batch, 4]`."""
    return js.export.TensorSpec((None, *dims), dtype)


def receiver_fn(features=None, **tensors):
    """A serving_input_receiver_fn that takes these tensors, by default `x`."""
    tensors = tensors or {"x": shape(4)}
    return lambda: js.export.ServingInputReceiver(tensors if features is None else features, tensors)


def predicted(estimator, features):
    """What predict yields, as arrays `[rows, ...]` by name."""
    examples = list(estimator.predict(lambda: features))
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}
