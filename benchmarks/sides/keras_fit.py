"""Keras 3 on JAX: `fit`, `evaluate` and `predict` of a compiled model, from arrays.

As https://keras.io/guides/training_with_built_in_methods/ says; `steps_per_execution` is described in
https://keras.io/api/models/model_training_apis/. Keras compiles each step with XLA by itself on JAX.
"""

import os

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras
from keras import layers, ops
from workloads import CHANNELS, CLASSES, HEADS, LAYERS, LEARNING_RATE, LENGTH, VOCABULARY, WIDTH

SETTINGS = (1, 10, 50)
"""Of steps_per_execution."""


def mlp(workload):
    inputs = keras.Input(workload.row)
    return inputs, layers.Dense(CLASSES)(layers.Dense(workload.module.hidden, activation="relu")(inputs))


def cnn(workload):
    inputs = x = keras.Input(workload.row)
    for channels in CHANNELS:
        x = layers.AveragePooling2D(2)(layers.Conv2D(channels, 3, padding="same", activation="relu")(x))
    return inputs, layers.Dense(CLASSES)(layers.Flatten()(x))


def transformer(workload):
    inputs = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(VOCABULARY, WIDTH)(inputs)
    for _ in range(LAYERS):
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        x = x + layers.MultiHeadAttention(HEADS, WIDTH // HEADS)(y, y, use_causal_mask=True)
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        x = x + layers.Dense(WIDTH)(layers.Dense(4 * WIDTH, activation="relu")(y))
    return inputs, layers.Dense(VOCABULARY)(layers.LayerNormalization(epsilon=1e-6)(x))


MODELS = {"MLP": mlp, "tiny": mlp, "CNN": cnn, "transformer": transformer}


class OddAUC(keras.metrics.AUC):
    """AUC of whether the class is an odd one, from logits."""

    def update_state(self, y_true, y_pred, sample_weight=None):
        probabilities = ops.sum(ops.softmax(y_pred)[..., 1::2], axis=-1)
        return super().update_state(ops.reshape(y_true, (-1,)) % 2, probabilities, sample_weight)


METRICS = {
    "loss only": list,
    "accuracy": lambda: [keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
    "AUC": lambda: [OddAUC(num_thresholds=200, name="auc")],
}


class Keras:
    """Trains, evaluates and predicts with `steps_per_execution` batches in each call of a compiled function."""

    def __init__(self, workload, data, steps_per_execution, metric="loss only"):
        self.workload, (self.x, self.y) = workload, data
        inputs, logits = MODELS[workload.name](workload)
        self.model = keras.Model(inputs, logits)
        assert self.model.count_params() == sum(leaf.size for leaf in jax.tree.leaves(workload.variables()))
        self.model.compile(
            optimizer=keras.optimizers.Adam(LEARNING_RATE),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=METRICS[metric](),
            steps_per_execution=steps_per_execution,
        )
        self.probabilities = keras.Model(inputs, layers.Softmax()(logits))
        self.probabilities.compile(steps_per_execution=steps_per_execution)

    def train(self):
        """Trains on the set."""
        self.model.fit(self.x, self.y, batch_size=self.workload.batch, epochs=self.workload.passes, verbose=0)

    def evaluate(self):
        """Loss, and the metric, of the set."""
        return self.model.evaluate(self.x, self.y, batch_size=self.workload.batch, verbose=0, return_dict=True)

    def predict(self):
        """The predictions of the whole set."""
        return self.probabilities.predict(self.x, batch_size=self.workload.batch, verbose=0)


def settings(workload, data, metric="loss only"):
    """{name of the side: model} for each setting that fits the number of batches."""
    fitting = [n for n in SETTINGS if n <= workload.batches]
    return {f"Keras, {n} steps an execution": Keras(workload, data, n, metric) for n in fitting}
