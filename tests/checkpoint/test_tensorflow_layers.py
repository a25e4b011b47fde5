"""Each layer of the table of names and layouts computes with TensorFlow's variables what it computed there."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
from tensorflow_checkpoints import DATA, expected

from jaxspec.checkpoint import tf

SAME, VALID = {"padding": "SAME"}, {"padding": "VALID"}
NO_BIAS, NO_SCALE = {"use_bias": False}, {"use_scale": False}
norm = functools.partial(nn.BatchNorm, use_running_average=True, epsilon=1e-3)
CASES = {
    "tf_layers/dense": ("row", nn.Dense(4), tf.dense, {}),
    "tf_layers/conv1d": ("line", nn.Conv(5, (3,), 2, **SAME), tf.dense, {}),
    "tf_layers/conv2d": ("image", nn.Conv(5, (3, 2), (2, 1), **SAME), tf.dense, {}),
    "tf_layers/conv3d": ("volume", nn.Conv(3, (2, 2, 2), **VALID), tf.dense, {}),
    "tf_layers/batch_norm": ("image", norm(), tf.batch_norm, {}),
    "dense": ("row", nn.Dense(4), tf.dense, {}),
    "conv1d": ("line", nn.Conv(5, (3,), padding="CAUSAL", kernel_dilation=2), tf.dense, {}),
    "conv2d": ("image", nn.Conv(6, (3, 3), feature_group_count=3, **VALID), tf.dense, {}),
    "conv2d_transpose": ("image", nn.ConvTranspose(5, (3, 2), (2, 2), transpose_kernel=True, **SAME), tf.dense, {}),
    "conv3d": ("volume", nn.Conv(3, (2, 2, 2), **VALID, **NO_BIAS), tf.dense, NO_BIAS),
    "depthwise_conv1d": ("line", nn.Conv(8, (3,), feature_group_count=4, **VALID), tf.depthwise_conv, {}),
    "depthwise_conv2d": ("image", nn.Conv(6, (3, 3), 2, feature_group_count=3, **SAME), tf.depthwise_conv, {}),
    "batch_norm": ("image", norm(), tf.batch_norm, {}),
    "batch_norm_without_scale": ("row", norm(**NO_SCALE), tf.batch_norm, NO_SCALE),
    "batch_norm_without_bias": ("row", norm(**NO_BIAS), tf.batch_norm, NO_BIAS),
    "layer_norm": ("row", nn.LayerNorm(epsilon=1e-3), tf.layer_norm, {}),
    "embedding": ("ids", nn.Embed(13, 5), tf.embedding, {}),
    "lstm/lstm_cell": ("line", nn.RNN(nn.OptimizedLSTMCell(4)), tf.keras_lstm, {}),
    "lstm_without_bias/lstm_cell": ("line", nn.RNN(nn.LSTMCell(4)), tf.keras_lstm, NO_BIAS),
}


class Layer(nn.Module):
    layer: nn.Module

    @nn.compact
    def __call__(self, x):
        return self.layer(x)


@pytest.mark.parametrize("source", CASES)
def test_a_layer_computes_what_it_computed_in_tensorflow(source):
    name, layer, entries, arguments = CASES[source]
    saved, module = expected("layers"), Layer(layer)
    variables = module.init(jax.random.key(0), saved[name])
    assignment_map = entries(source, "layer/cell" if isinstance(layer, nn.RNN) else "layer", **arguments)
    imported = tf.init_from_checkpoint(DATA / "layers", assignment_map)(variables)
    outputs, fresh = (module.apply(given, saved[name]) for given in (imported, variables))
    right = saved[source.removesuffix("/lstm_cell")]
    assert np.abs(fresh - right).max() > 0.01
    np.testing.assert_allclose(outputs, right, rtol=1e-5, atol=1e-5)


def test_a_layer_may_be_the_whole_model():
    saved, module = expected("layers"), norm()
    variables = module.init(jax.random.key(0), saved["image"])
    variables = tf.init_from_checkpoint(DATA / "layers", tf.batch_norm("batch_norm", ""))(variables)
    np.testing.assert_allclose(module.apply(variables, saved["image"]), saved["batch_norm"], rtol=1e-5, atol=1e-5)
    assert tf.embedding("", "words") == {"embeddings": "params/words/embedding"}
    assert "params/hf/bias" in tf.keras_lstm("cell", "")["cell/bias"]


ATTENTION = {"query": "query", "key": "key", "value": "value", "attention_output": "out"}


def test_attention_is_four_dense_layers():
    class Attention(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.MultiHeadDotProductAttention(2, qkv_features=6, name="attention")(x, x)

    saved, assignment_map = expected("layers"), {}
    for theirs, ours in ATTENTION.items():
        assignment_map |= tf.dense(f"attention/{theirs}", f"attention/{ours}")
    variables = Attention().init(jax.random.key(0), saved["row"])
    variables = tf.init_from_checkpoint(DATA / "layers", assignment_map)(variables)
    outputs = Attention().apply(variables, saved["row"])
    np.testing.assert_allclose(outputs, saved["attention"], rtol=1e-5, atol=1e-5)


def test_every_layer_that_was_saved_is_compared():
    stored = {name.rpartition("/")[0] for name, _ in tf.list_variables(DATA / "layers")}
    assert stored == set(CASES) | {f"attention/{name}" for name in ATTENTION}
