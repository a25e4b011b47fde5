"""Writes the checkpoints in ``data/checkpoints`` with TensorFlow. It needs TensorFlow 2.15 and nothing of this project::

    pip install tensorflow-cpu==2.15.1 crc32c cramjam && PYTHONPATH=../support python record_checkpoints.py

Each is in a directory of its own, with ``expected.npz``: what TensorFlow reads from it, or what its model computes.
"""

import json
import os
import pathlib
import shutil

import cramjam
import numpy as np
import tensorflow as tf
from tensorflow.compat.v1 import nn
from tensorflow.compat.v1 import train as v1_train
from tensorflow_tables import table

v1 = tf.compat.v1
DATA = pathlib.Path(__file__).parent / "data" / "checkpoints"


def main():
    """Writes everything."""
    shutil.rmtree(DATA, ignore_errors=True)
    for write in (dtypes, saver, slices, snappy, bert, resnet, rnn_cell, layers, text):
        directory = DATA / write.__name__
        directory.mkdir(parents=True)
        tf.keras.utils.set_random_seed(7)
        with tf.Graph().as_default() if write in (saver, bert, rnn_cell, layers) else tf.init_scope():
            write(directory)
        for file in directory.glob("*.meta"):
            file.unlink()


def noise(*shape):
    """Values for variables, none of which is special."""
    return (0.3 * np.random.randn(*shape)).astype(np.float32)


def expect(directory, **arrays):
    np.savez_compressed(directory / "expected.npz", **arrays)


def expect_what_tensorflow_reads(directory, prefix):
    """Numbers go to expected.npz, those that it cannot hold as their bytes; the rest to expected.json."""
    reader = v1_train.load_checkpoint(str(directory / prefix))
    arrays, described = {}, {}
    for name, dtype in reader.get_variable_to_dtype_map().items():
        value = reader.get_tensor(name)
        if dtype == tf.string:
            text = [item.decode("latin-1") for item in np.asarray(value, object).ravel()]
            described[name] = {"dtype": "object", "shape": list(np.shape(value)), "strings": text}
            continue
        value = np.asarray(value)
        kind = value.dtype.name if value.dtype.fields is None else value.dtype[0].name
        described[name] = {"dtype": kind, "shape": list(value.shape)}
        arrays[name] = np.frombuffer(value.tobytes(), np.uint8)
    expect(directory, **arrays)
    (directory / "expected.json").write_text(json.dumps(described, indent=1, sort_keys=True) + "\n")


def dtypes(directory):
    """A tensor of each dtype; scalars, empty ones, strings."""
    numbers = np.arange(-3, 4)
    tensors = {name: tf.constant(numbers, name) for name in ("float16", "bfloat16", "float32", "float64")}
    tensors |= {name: tf.constant(numbers, name) for name in ("int8", "int16", "int32", "int64")}
    tensors |= {name: tf.constant(numbers + 250, name) for name in ("uint8", "uint16", "uint32", "uint64")}
    tensors |= {name: tf.constant(numbers + 1j, name) for name in ("complex64", "complex128")}
    for name in ("float8_e5m2", "float8_e4m3fn"):
        tensors[name] = tf.cast(tf.constant(numbers, tf.float32), getattr(tf.dtypes.experimental, name))
    for name in ("int4", "uint4"):
        tensors[name] = tf.cast(tf.constant(numbers % 7, tf.int8), getattr(tf.dtypes.experimental, name))
    for name in ("qint8", "quint8", "qint32", "qint16", "quint16"):
        tensors[name] = tf.bitcast(tf.constant(np.abs(numbers), name.removeprefix("q")), getattr(tf, name))
    tensors["bool"] = tf.constant(numbers > 0)
    tensors["scope/scalar"] = tf.constant(7, tf.int64)
    tensors["scope/empty"] = tf.zeros((0, 3))
    tensors["strings"] = tf.constant([[b"ab", b"", b"\xff\0"], [b"x" * 300, "ü", b"c"]])
    tensors["string"] = tf.constant("one")
    tensors["no_strings"] = tf.zeros((0,), tf.string)
    tensors["names/ü and spaces"] = tf.constant(noise(3))
    names = sorted(tensors)
    tf.raw_ops.SaveV2(
        prefix=str(directory / "model"),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tensors[name] for name in names],
    )
    expect_what_tensorflow_reads(directory, "model")


def saver(directory):
    """What a training with partitioned variables on three devices leaves: several data files, several checkpoints."""
    with tf.device("/cpu:0"):
        v1.get_variable("dense/kernel", initializer=noise(4, 3))
        v1.get_variable("narrow", initializer=tf.constant(noise(5), tf.bfloat16))
        step = v1_train.get_or_create_global_step()
    axis_0, axis_1 = v1.fixed_size_partitioner(3), v1.fixed_size_partitioner(2, axis=1)
    with tf.device("/cpu:1"):
        v1.get_variable("embedding", [100, 3], partitioner=axis_0, initializer=v1.random_normal_initializer(seed=1))
    with tf.device("/cpu:2"):
        v1.get_variable("wide", [4, 200], partitioner=axis_1, initializer=v1.random_normal_initializer(seed=2))
    config = v1.ConfigProto(device_count={"CPU": 3})
    saver = v1_train.Saver(sharded=True, save_relative_paths=True)
    with v1.Session(config=config) as session:
        session.run(v1.global_variables_initializer())
        for number in (3, 12):
            session.run(step.assign(number))
            saver.save(session, str(directory / "model.ckpt"), global_step=number)
    expect_what_tensorflow_reads(directory, "model.ckpt-12")


def slices(directory):
    """A tensor in slices along both axes, whose numbers need several bytes, and some are negative in the index."""
    whole = noise(70, 300)
    places = {
        (0, 64, 0, 200): "70 300 0,64:0,200",
        (64, 6, 0, 200): "70 300 64,6:0,200",
        (0, 70, 200, 100): "70 300 -:200,100",
    }
    files = []
    for number, (place, spec) in enumerate(places.items()):
        row, rows, column, columns = place
        files.append(str(directory / f"part-{number}"))
        tf.raw_ops.SaveV2(
            prefix=files[-1],
            tensor_names=["scope/whole"],
            shape_and_slices=[spec],
            tensors=[tf.constant(whole[row : row + rows, column : column + columns])],
        )
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=files, destination_prefix=str(directory / "model"))
    expect_what_tensorflow_reads(directory, "model")


def snappy(directory):
    """The checkpoint `dtypes` with an index whose blocks are compressed, which TensorFlow reads and does not write."""
    entries = dict(entries_of(DATA / "dtypes" / "model.index"))
    (directory / "model.index").write_bytes(table(entries, compressed, entries_a_block=6))
    shutil.copy(DATA / "dtypes" / "model.data-00000-of-00001", directory)
    expect_what_tensorflow_reads(directory, "model")
    streams = {"nothing": b"", "zeros": bytes(5000), "short": np.random.bytes(50), "long": np.random.bytes(300)}
    streams |= {"longer": np.random.bytes(1000), "far": (middle := np.random.bytes(900)) + bytes(3000) + middle}
    streams["text"] = b" ".join(str(number * number).encode() for number in range(500))
    stored = streams | {f"{name} compressed": compressed(data) for name, data in streams.items()}
    arrays = {name: np.frombuffer(data, np.uint8) for name, data in stored.items()}
    np.savez_compressed(directory / "streams.npz", names=list(streams), **arrays)


def compressed(data):
    return bytes(cramjam.snappy.compress_raw(data))


def entries_of(path):
    """The entries of an index, by an independent reader."""
    data = path.read_bytes()

    def varint(at):
        value = shift = 0
        while True:
            byte = data[at]
            value |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                return value, at

    def block(start, size):
        restarts = int.from_bytes(data[start + size - 4 : start + size], "little")
        at, key = start, b""
        while at < start + size - 4 * (restarts + 1):
            shared, at = varint(at)
            own, at = varint(at)
            length, at = varint(at)
            key = key[:shared] + data[at : at + own]
            yield key, at + own, length
            at += own + length

    _, at = varint(len(data) - 48)
    _, at = varint(at)
    start, at = varint(at)
    size, _ = varint(at)
    for _, place, _ in block(start, size):
        first, at = varint(place)
        for key, at_value, length in block(first, varint(at)[0]):
            yield key, data[at_value : at_value + length]


BERT = {"vocabulary": 100, "positions": 16, "hidden": 32, "heads": 4, "layers": 2, "classes": 3}


def bert(directory):
    """BERT for classification, with the names and the arithmetic of google-research/bert."""
    hidden, heads = BERT["hidden"], BERT["heads"]

    def variable(name, *shape):
        return v1.get_variable(name, initializer=noise(*shape))

    def dense(x, units, name, activation=None):
        with v1.variable_scope(name):
            y = tf.matmul(x, variable("kernel", x.shape[-1], units)) + variable("bias", units)
            return y if activation is None else activation(y)

    def layer_norm(x):
        with v1.variable_scope("LayerNorm"):
            beta, gamma = variable("beta", hidden), 1 + noise(hidden)
            gamma = v1.get_variable("gamma", initializer=gamma)
            mean, variance = tf.nn.moments(x, [-1], keepdims=True)
            return nn.batch_normalization(x, mean, variance, beta, gamma, 1e-12)

    def gelu(x):
        return 0.5 * x * (1 + tf.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * tf.pow(x, 3))))

    def heads_of(x):
        return tf.transpose(tf.reshape(x, [*x.shape[:2], heads, hidden // heads]), [0, 2, 1, 3])

    ids = np.random.randint(0, BERT["vocabulary"], (4, 12))
    types = np.random.randint(0, 2, (4, 12))
    mask = (np.arange(12) < np.array([[12], [9], [5], [1]])).astype(np.int32)
    with v1.variable_scope("bert"):
        with v1.variable_scope("embeddings"):
            x = tf.gather(variable("word_embeddings", BERT["vocabulary"], hidden), ids)
            x += tf.gather(variable("token_type_embeddings", 2, hidden), types)
            x = layer_norm(x + variable("position_embeddings", BERT["positions"], hidden)[:12])
        for number in range(BERT["layers"]):
            with v1.variable_scope(f"encoder/layer_{number}"):
                with v1.variable_scope("attention"):
                    with v1.variable_scope("self"):
                        q, k, v = (heads_of(dense(x, hidden, name)) for name in ("query", "key", "value"))
                        scores = tf.matmul(q, k, transpose_b=True) / np.sqrt(hidden // heads).astype(np.float32)
                        scores += (1.0 - mask[:, None, None].astype(np.float32)) * -10000.0
                        context = tf.transpose(tf.matmul(tf.nn.softmax(scores), v), [0, 2, 1, 3])
                    with v1.variable_scope("output"):
                        x = layer_norm(x + dense(tf.reshape(context, x.shape), hidden, "dense"))
                with v1.variable_scope("intermediate"):
                    y = dense(x, 2 * hidden, "dense", gelu)
                with v1.variable_scope("output"):
                    x = layer_norm(x + dense(y, hidden, "dense"))
        with v1.variable_scope("pooler"):
            pooled = dense(x[:, 0], hidden, "dense", tf.tanh)
    logits = tf.matmul(pooled, variable("output_weights", BERT["classes"], hidden), transpose_b=True)
    logits += variable("output_bias", BERT["classes"])
    save_graph(directory, {"logits": logits}, ids=ids, types=types, mask=mask)


def rnn_cell(directory):
    """An LSTM of tf.nn.rnn_cell, which adds its forget_bias while it runs."""
    x = noise(3, 7, 5)
    cell = nn.rnn_cell.LSTMCell(6, initializer=v1.random_normal_initializer(seed=3))
    outputs, _ = nn.dynamic_rnn(cell, tf.constant(x), dtype=tf.float32)
    change = [variable.assign_add(noise(*variable.shape)) for variable in v1.global_variables()]
    save_graph(directory, {"outputs": outputs}, change, x=x)


def layers(directory):
    """Layers of tf.layers, in a scope of that name, and of Keras, each with the name that its output has."""
    old, keras = v1.layers, tf.keras.layers
    inputs = {"row": noise(3, 5, 6), "line": noise(2, 9, 4), "image": noise(2, 7, 8, 3), "volume": noise(2, 5, 4, 6, 2)}
    inputs |= {"ids": np.random.randint(0, 13, (3, 4))}
    row, line, image, volume, ids = map(tf.constant, inputs.values())
    with v1.variable_scope("tf_layers"):
        outputs = {
            "tf_layers/dense": old.dense(row, 4, name="dense"),
            "tf_layers/conv1d": old.conv1d(line, 5, 3, strides=2, padding="same", name="conv1d"),
            "tf_layers/conv2d": old.conv2d(image, 5, (3, 2), strides=(2, 1), padding="same", name="conv2d"),
            "tf_layers/conv3d": old.conv3d(volume, 3, 2, name="conv3d"),
            "tf_layers/batch_norm": old.batch_normalization(image, name="batch_norm"),
        }
    made = {
        "dense": (keras.Dense(4), row),
        "conv1d": (keras.Conv1D(5, 3, padding="causal", dilation_rate=2), line),
        "conv2d": (keras.Conv2D(6, 3, groups=3), image),
        "conv2d_transpose": (keras.Conv2DTranspose(5, (3, 2), strides=2, padding="same"), image),
        "conv3d": (keras.Conv3D(3, 2, use_bias=False), volume),
        "depthwise_conv1d": (keras.DepthwiseConv1D(3, depth_multiplier=2), line),
        "depthwise_conv2d": (keras.DepthwiseConv2D(3, strides=2, depth_multiplier=2, padding="same"), image),
        "batch_norm": (keras.BatchNormalization(), image),
        "batch_norm_without_scale": (keras.BatchNormalization(scale=False), row),
        "batch_norm_without_bias": (keras.BatchNormalization(center=False), row),
        "layer_norm": (keras.LayerNormalization(), row),
        "embedding": (keras.Embedding(13, 5), ids),
        "lstm": (keras.LSTM(4, return_sequences=True), line),
        "lstm_without_bias": (keras.LSTM(4, return_sequences=True, use_bias=False), line),
    }
    for name, (layer, x) in made.items():
        layer._name = name  # The name alone, not counted up in the process.
        outputs[name] = layer(x)
    outputs["attention"] = keras.MultiHeadAttention(2, 3, name="attention")(row, row)
    # Positive, for the variances.
    change = [variable.assign_add(np.abs(noise(*variable.shape))) for variable in v1.global_variables()]
    save_graph(directory, outputs, change, **inputs)


def save_graph(directory, outputs, change=(), **inputs):
    with v1.Session() as session:
        session.run(v1.global_variables_initializer())
        session.run(list(change))
        expect(directory, **inputs, **session.run(outputs))
        v1_train.Saver(save_relative_paths=True).save(session, str(directory / "model.ckpt"), write_meta_graph=False)


class ResNet(tf.keras.Model):
    """A stem, a residual block, a block with a depthwise convolution, a classifier."""

    def __init__(self):
        super().__init__()
        layers = tf.keras.layers
        self.stem = layers.Conv2D(8, 3, 2, "same", use_bias=False)
        self.stem_norm = layers.BatchNormalization()
        self.convs = [layers.Conv2D(8, 3, padding="same", use_bias=False) for _ in range(2)]
        self.norms = [layers.BatchNormalization(epsilon=1e-5) for _ in range(2)]
        self.depthwise = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)
        self.project = layers.Conv2D(12, 1)
        self.classifier = layers.Dense(5)

    def call(self, x):
        x = tf.nn.relu(self.stem_norm(self.stem(x), training=False))
        y = tf.nn.relu(self.norms[0](self.convs[0](x), training=False))
        x = tf.nn.relu(x + self.norms[1](self.convs[1](y), training=False))
        x = tf.nn.relu(self.project(tf.nn.relu(self.depthwise(x))))
        return self.classifier(tf.reduce_mean(x, [1, 2]))


class Text(tf.keras.Model):
    """An embedding, an LSTM, a layer norm, a classifier."""

    def __init__(self):
        super().__init__()
        layers = tf.keras.layers
        self.embedding = layers.Embedding(20, 6)
        self.lstm = layers.LSTM(8)
        self.norm = layers.LayerNormalization()
        self.classifier = layers.Dense(2)

    def call(self, ids):
        return self.classifier(self.norm(self.lstm(self.embedding(ids))))


def resnet(directory):
    """A Keras model of images, saved by its attributes, together with its optimizer."""
    save_keras(directory, ResNet(), noise(4, 12, 12, 3))


def text(directory):
    """A Keras model of text."""
    save_keras(directory, Text(), np.random.randint(0, 20, (4, 9)))


def save_keras(directory, model, x):
    model(x)
    for weight in model.weights:  # variances stay positive
        weight.assign_add(tf.abs(noise(*weight.shape)) if "variance" in weight.name else noise(*weight.shape))
    path = tf.train.Checkpoint(model=model, step=tf.Variable(5, dtype=tf.int64)).save(str(directory / "ckpt"))
    assert os.path.basename(path) == "ckpt-1"
    expect(directory, x=x, logits=model(x))


if __name__ == "__main__":
    main()
