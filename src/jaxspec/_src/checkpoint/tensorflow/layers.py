"""What layers of `tf.layers` and Keras call their variables, and what Flax does: parts of an assignment map.

Each function takes the scope of a layer in the checkpoint and the path of the Flax module without its collection, and
returns the entries of a map for `init_from_checkpoint`. Join them with `|`. The path of a model of one layer is "".
"""

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

from jaxspec._src.base.name_maps import Converter, Target

Entries: TypeAlias = dict[str, Target]


def dense(source: str, target: str, *, use_bias: bool = True) -> Entries:
    """Dense to `nn.Dense`, Conv1D, Conv2D, Conv3D to `nn.Conv`, and Conv2DTranspose to
    `nn.ConvTranspose(transpose_kernel=True)`: names and layouts are the same."""
    return _named(source, target, {"kernel": "kernel"} | _bias(use_bias))


def depthwise_conv(source: str, target: str, *, use_bias: bool = True) -> Entries:
    """DepthwiseConv2D, `[height, width, in, multiplier]`, to `nn.Conv(in * multiplier, feature_group_count=in)`, and
    DepthwiseConv1D, which has no height."""
    kernel = {_join("params", target, "kernel"): lambda array: array.reshape(*array.shape[:-2], 1, -1)}
    return {_join(source, "depthwise_kernel"): kernel, **_named(source, target, _bias(use_bias))}


def batch_norm(source: str, target: str, *, use_scale: bool = True, use_bias: bool = True) -> Entries:
    """BatchNormalization to `nn.BatchNorm`. Keras has an epsilon of 0.001, Flax one of 0.00001: set it."""
    return {
        **layer_norm(source, target, use_scale=use_scale, use_bias=use_bias),
        **_named(source, target, {"moving_mean": "mean", "moving_variance": "var"}, "batch_stats"),
    }


def layer_norm(source: str, target: str, *, use_scale: bool = True, use_bias: bool = True) -> Entries:
    """LayerNormalization to `nn.LayerNorm`. The epsilon of Keras is 0.001, that of Flax 0.000001: set it."""
    names = ({"gamma": "scale"} if use_scale else {}) | ({"beta": "bias"} if use_bias else {})
    return _named(source, target, names)


def embedding(source: str, target: str) -> Entries:
    """Embedding to `nn.Embed`."""
    return _named(source, target, {"embeddings": "embedding"})


def keras_lstm(source: str, target: str, *, use_bias: bool = True) -> Entries:
    """The LSTMCell of Keras to `nn.LSTMCell` or `nn.OptimizedLSTMCell`.

    Args:
      source: the scope of the cell, such as `lstm/lstm_cell`, or `lstm/cell` where attributes give the names.
    """
    biases = {_join(source, "bias"): _gates(target, "h", "bias", "ifgo")} if use_bias else {}
    return {
        _join(source, "kernel"): _gates(target, "i", "kernel", "ifgo"),
        _join(source, "recurrent_kernel"): _gates(target, "h", "kernel", "ifgo"),
        **biases,
    }


def rnn_cell_lstm(source: str, target: str, *, forget_bias: float = 1.0) -> Entries:
    """`tf.nn.rnn_cell.LSTMCell` and `BasicLSTMCell` to `nn.LSTMCell` or `nn.OptimizedLSTMCell`.

    Args:
      source: the scope of the cell, such as `rnn/lstm_cell`.
      forget_bias: that of the cell, which TensorFlow does not store. It is added to the bias of the forget gate.
    """

    def part_of(convert: Converter, rows: str) -> Converter:
        """The rows of the kernel that the input, or the last output, is multiplied by."""

        def of_rows(array: np.ndarray) -> np.ndarray:
            units = array.shape[1] // 4
            return convert(array[:-units] if rows == "i" else array[-units:])

        return of_rows

    kernels = {
        path: part_of(convert, rows)
        for rows in "ih"
        for path, convert in _gates(target, rows, "kernel", "igfo").items()
    }
    biases = _gates(target, "h", "bias", "igfo")
    forget = _join("params", target, "hf", "bias")
    of_forget_gate = biases[forget]
    biases[forget] = lambda array: of_forget_gate(array) + np.asarray(forget_bias, array.dtype)
    return {_join(source, "kernel"): kernels, _join(source, "bias"): biases}


def _gates(target: str, rows: str, leaf: str, order: str) -> dict[str, Converter]:
    """By path, what takes each gate from an array that has the four side by side."""

    def gate(number: int) -> Converter:
        return lambda array: np.split(array, 4, axis=-1)[number]

    return {_join("params", target, rows + name, leaf): gate(number) for number, name in enumerate(order)}


def _named(source: str, target: str, names: Mapping[str, str], collection: str = "params") -> Entries:
    return {_join(source, theirs): _join(collection, target, ours) for theirs, ours in names.items()}


def _join(*names: str) -> str:
    return "/".join(filter(None, names))


def _bias(use_bias: bool) -> dict[str, str]:
    return {"bias": "bias"} if use_bias else {}
