"""The checkpoints that TensorFlow wrote, and models in Flax with the arithmetic of those that were saved."""

import json
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

DATA = pathlib.Path(__file__).parents[1] / "tensorflow_oracle" / "data" / "checkpoints"


def expected(name):
    """What TensorFlow computes with the model of a checkpoint, and from what."""
    return np.load(DATA / name / "expected.npz")


def as_tensorflow_reads(name):
    """The values that TensorFlow reads from a checkpoint."""
    arrays, described = expected(name), json.loads((DATA / name / "expected.json").read_text())
    values = {}
    for variable, form in described.items():
        if form["dtype"] == "object":
            value = np.empty(len(form["strings"]), object)
            value[:] = [text.encode("latin-1") for text in form["strings"]]
        else:
            value = np.frombuffer(arrays[variable].tobytes(), jnp.dtype(form["dtype"]))
        values[variable] = value.reshape(form["shape"])
    return values


class BertLayer(nn.Module):
    heads: int

    @nn.compact
    def __call__(self, x, mask):
        hidden = x.shape[-1]

        def heads_of(name):
            return nn.Dense(hidden, name=name)(x).reshape(*x.shape[:2], self.heads, -1)

        scores = jnp.einsum("bqhd,bkhd->bhqk", heads_of("query"), heads_of("key")) / jnp.sqrt(hidden // self.heads)
        scores += (1.0 - mask[:, None, None]) * -10000.0
        context = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), heads_of("value")).reshape(x.shape)
        x = nn.LayerNorm(1e-12, name="attention_norm")(x + nn.Dense(hidden, name="attention_output")(context))
        y = nn.gelu(nn.Dense(2 * hidden, name="intermediate")(x))
        return nn.LayerNorm(1e-12, name="output_norm")(x + nn.Dense(hidden, name="output")(y))


class Bert(nn.Module):
    @nn.compact
    def __call__(self, ids, types, mask):
        x = nn.Embed(100, 32, name="words")(ids) + nn.Embed(2, 32, name="types")(types)
        positions = self.param("positions", nn.initializers.normal(), (16, 32))
        x = nn.LayerNorm(1e-12, name="norm")(x + positions[: ids.shape[1]])
        for number in range(2):
            x = BertLayer(4, name=f"layer_{number}")(x, mask)
        return nn.Dense(3, name="classifier")(jnp.tanh(nn.Dense(32, name="pooler")(x[:, 0])))


class ResNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        def norm(name, epsilon):
            return nn.BatchNorm(use_running_average=True, epsilon=epsilon, name=name)

        x = nn.relu(norm("stem_norm", 1e-3)(nn.Conv(8, (3, 3), 2, use_bias=False, name="stem")(x)))
        y = nn.relu(norm("norm_0", 1e-5)(nn.Conv(8, (3, 3), use_bias=False, name="conv_0")(x)))
        x = nn.relu(x + norm("norm_1", 1e-5)(nn.Conv(8, (3, 3), use_bias=False, name="conv_1")(y)))
        x = nn.relu(nn.Conv(16, (3, 3), feature_group_count=8, name="depthwise")(x))
        return nn.Dense(5, name="classifier")(nn.relu(nn.Conv(12, (1, 1), name="project")(x)).mean((1, 2)))


class Text(nn.Module):
    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(20, 6, name="embedding")(ids)
        x = nn.RNN(nn.OptimizedLSTMCell(8, name="cell"))(x)[:, -1]
        return nn.Dense(2, name="classifier")(nn.LayerNorm(1e-3, name="norm")(x))
