"""The models of the recordings, as pure functions of their variables."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

BATCH_NORM_MOMENTUM, BATCH_NORM_EPSILON = 0.9, 1e-3


def apply(recording, variables, features, *, training=False, average=lambda statistic: statistic):
    """The outputs of the recorded model, and the new non-trainable collections.

    ``average`` takes the mean of a batch statistic over whatever else is part of the batch: the other shards.
    """
    params, kind = variables["params"], recording.model["kind"]
    if kind == "linear":
        return features @ params["w"] + params["b"], {}
    if kind == "conv":
        return _conv(params, features), {}
    return _mlp(recording, variables, features, training, average)


def loss(recording, params, outputs, labels):
    """The loss of a batch, with the penalty on the matrices."""
    if recording.model["kind"] == "linear":
        error = jnp.mean((outputs - labels) ** 2)
    else:
        error = optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean()
    matrices = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
    return error + recording.l2 * sum(jnp.sum(matrix**2) for matrix in matrices) / 2


def evaluate(recording, variables, features, labels):
    """The loss of a batch under given variables, without training."""
    outputs, _ = apply(recording, variables, features)
    return loss(recording, variables["params"], outputs, labels)


def predictions(recording, outputs):
    """What predict() yields."""
    if recording.model["kind"] == "linear":
        return {"prediction": outputs}
    return {"class": outputs.argmax(-1), "logits": outputs, "probabilities": jax.nn.softmax(outputs)}


def _conv(params, image):
    image = jax.lax.conv_general_dilated(
        image, params["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    pooled = nn.max_pool(jax.nn.relu(image + params["conv_bias"]), (2, 2), strides=(2, 2), padding="VALID")
    return pooled.reshape(len(pooled), -1) @ params["w"] + params["b"]


def _mlp(recording, variables, hidden, training, average):
    params, updates = variables["params"], {}
    activation = getattr(jax.nn, recording.model["activation"])
    last = len(recording.model["hidden"])
    for layer in range(last):
        hidden = hidden @ params[f"w{layer}"] + params[f"b{layer}"]
        if recording.batch_norm:
            name = f"bn{layer}"
            statistics = variables["batch_stats"][name]
            hidden, updates[name] = _normalize(params[name], statistics, hidden, training, average)
        hidden = activation(hidden)
    outputs = hidden @ params[f"w{last}"] + params[f"b{last}"]
    return outputs, {"batch_stats": updates} if updates else {}


def _normalize(params, moving, values, training, average):
    """Batch norm: the normalised values and the new moving statistics."""
    mean, variance = moving["moving_mean"], moving["moving_variance"]
    if training:
        mean = average(values.mean(0))
        variance = average(((values - mean) ** 2).mean(0))
        moving = {
            "moving_mean": _decay(moving["moving_mean"], mean),
            "moving_variance": _decay(moving["moving_variance"], variance),
        }
    scale = params["gamma"] * jax.lax.rsqrt(variance + BATCH_NORM_EPSILON)
    return (values - mean) * scale + params["beta"], moving


def _decay(moving, value):
    return BATCH_NORM_MOMENTUM * moving + (1 - BATCH_NORM_MOMENTUM) * value
