"""The real TPUEstimator of TensorFlow 2.15 on the CPU, in a process of its own: what
`benchmarks/real_tpu_estimator.py` starts.

    python benchmarks/sides/tensorflow_side.py DATA.npz

It reads the names of what to do from standard input, one a line, and answers each with its seconds. As the guide says
(https://www.tensorflow.org/guide/estimator, and the docstring of TPUEstimator): a model_fn with a TPUEstimatorSpec, and
an input_fn that returns a tf.data.Dataset. With `use_tpu=False` a step is one call of the session.

Timed is what happens between the first and the last call of the session, by a hook: the graph, the session and the
checkpoint are made before. (jaxspec's whole call is timed.)
"""

import os
import sys
import tempfile
import time

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow as tf

tf1 = tf.compat.v1
tf1.logging.set_verbosity(tf1.logging.ERROR)
tpu = tf1.estimator.tpu
HIDDEN, CLASSES, LEARNING_RATE = 128, 10, 1e-3
SKIPPED = 20
"""Steps before the clock starts."""


def model_fn(features, labels, mode, params):
    """The MLP."""
    hidden = tf1.layers.dense(features, HIDDEN, activation=tf.nn.relu)
    logits = tf1.layers.dense(hidden, CLASSES)
    probabilities = tf.nn.softmax(logits)
    if mode == tf1.estimator.ModeKeys.PREDICT:
        return tpu.TPUEstimatorSpec(mode, predictions={"probabilities": probabilities})
    loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))
    train_op = None
    if mode == tf1.estimator.ModeKeys.TRAIN:
        optimizer = tf1.train.AdamOptimizer(LEARNING_RATE)
        train_op = optimizer.minimize(loss, global_step=tf1.train.get_global_step())
    odd = tf.reduce_sum(probabilities[:, 1::2], axis=-1)
    return tpu.TPUEstimatorSpec(
        mode, loss=loss, train_op=train_op, eval_metrics=(metric_fn, [labels, tf.argmax(logits, -1), odd])
    )


def metric_fn(labels, classes, odd):
    """The same metrics as those of the other side."""
    return {"accuracy": tf1.metrics.accuracy(labels, classes), "auc": tf1.metrics.auc(labels % 2, odd)}


class Stopwatch(tf1.train.SessionRunHook):
    """Seconds a call of the session, but for the first SKIPPED calls."""

    def begin(self):
        self.calls = 0

    def after_run(self, run_context, run_values):
        self.calls += 1
        self.ended = time.perf_counter()
        if self.calls == SKIPPED:
            self.began = self.ended

    @property
    def seconds(self):
        return (self.ended - self.began) / (self.calls - SKIPPED)


def main():
    loaded = np.load(sys.argv[1])
    x, y, batch, steps = loaded["x"], loaded["y"], int(loaded["batch"]), int(loaded["steps"])

    def input_fn(params, shuffle=False):
        data = tf.data.Dataset.from_tensor_slices((x, y)).cache()
        data = data.shuffle(len(x)) if shuffle else data
        return data.repeat().batch(params["batch_size"], drop_remainder=True).prefetch(tf.data.AUTOTUNE)

    with tempfile.TemporaryDirectory() as model_dir:
        estimator = tpu.TPUEstimator(
            model_fn,
            config=tpu.RunConfig(model_dir=model_dir, save_checkpoints_steps=10**9, log_step_count_steps=None),
            use_tpu=False,
            **{f"{verb}_batch_size": batch for verb in ("train", "eval", "predict")},
        )

        def train():
            watch = Stopwatch()
            estimator.train(lambda params: input_fn(params, shuffle=True), steps=steps, hooks=[watch])
            return watch.seconds

        def evaluate():
            watch = Stopwatch()
            estimator.evaluate(input_fn, steps=steps, hooks=[watch])
            return watch.seconds

        def predict():
            examples = estimator.predict(lambda params: input_fn(params).take(steps))
            for _ in range(batch):
                next(examples)
            began = time.perf_counter()
            count = sum(1 for _ in examples)
            return (time.perf_counter() - began) / count

        verbs = {"train": train, "evaluate": evaluate, "predict": predict}
        print(tf.__version__, flush=True)
        for line in sys.stdin:
            print(verbs[line.strip()](), flush=True)


if __name__ == "__main__":
    main()
