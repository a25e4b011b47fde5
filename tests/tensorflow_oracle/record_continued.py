"""Records training runs of TensorFlow's TPUEstimator that are continued from a checkpoint, into ``data/continued``.

It needs TensorFlow 2.15 and nothing of this project::

    pip install tensorflow-cpu==2.15.1 && python record_continued.py [directory]

Each case is a checkpoint of step 20 with the slots of its optimizer, and ``expected.npz``: the gradients of the next
step and the weights after it, the losses of the next 20 steps, and the weights after the last. ``averaged`` is that of
Adam with moving averages of the weights.
"""

import json
import pathlib
import re
import shutil
import sys
import tempfile

import numpy as np
import tensorflow as tf
from tensorflow.compat.v1 import estimator as v1_estimator
from tensorflow.compat.v1 import train as v1_train

v1 = tf.compat.v1
DATA = pathlib.Path(__file__).parent / "data" / "continued"
STEPS, ROWS = 20, 8
NAMES = [f"{layer}/{name}" for layer in ("hidden", "logits") for name in ("kernel", "bias")]
DECAYING = {"decay_steps": 15, "decay_rate": 0.6}
CASES = {
    "gradient_descent": ("GradientDescent", 0.05, {}),
    "momentum": ("Momentum", 0.02, {"momentum": 0.9}),
    "nesterov": ("Momentum", 0.02, {"momentum": 0.9, "use_nesterov": True}),
    "adam": ("Adam", 0.02, {}),
    "adam_large_epsilon": ("Adam", 0.02, {"beta1": 0.8, "beta2": 0.99, "epsilon": 0.1}),
    "adagrad": ("Adagrad", 0.1, {}),
    "rmsprop": ("RMSProp", 0.01, {}),
    "rmsprop_momentum": ("RMSProp", 0.01, {"momentum": 0.5, "epsilon": 0.01}),
    "rmsprop_centered": ("RMSProp", 0.01, {"momentum": 0.5, "epsilon": 0.01, "centered": True}),
    "adadelta": ("Adadelta", 1.0, {"epsilon": 1e-4}),
    "ftrl": ("Ftrl", 0.1, {"l1_regularization_strength": 0.01, "l2_regularization_strength": 0.01}),
    "ftrl_power": ("Ftrl", 0.1, {"learning_rate_power": -0.7, "l2_shrinkage_regularization_strength": 0.01}),
    "adam_weight_decay": ("AdamWeightDecay", 0.02, {"weight_decay_rate": 0.1, "exclude_from_weight_decay": ["bias"]}),
}
"""By name: the optimizer, its learning rate (which decays), its other arguments."""
AVERAGE_DECAY = 0.9
AVERAGES = [f"{name}/ExponentialMovingAverage" for name in NAMES]


class AdamWeightDecayOptimizer(v1_train.Optimizer):
    """The rule of BERT's optimizer, under its names: no bias correction, and decay that is not part of the gradient."""

    def __init__(self, learning_rate, weight_decay_rate, exclude_from_weight_decay):
        super().__init__(False, "AdamWeightDecayOptimizer")
        self.rate, self.decay, self.excluded = learning_rate, weight_decay_rate, exclude_from_weight_decay

    def apply_gradients(self, grads_and_vars, global_step=None, name=None):
        changes = []
        for gradient, variable in grads_and_vars:
            name = re.match("^(.*):\\d+$", variable.name)[1]
            m, v = (
                v1.get_variable(f"{name}/{slot}", variable.shape, initializer=tf.zeros_initializer(), trainable=False)
                for slot in ("adam_m", "adam_v")
            )
            next_m = 0.9 * m + (1.0 - 0.9) * gradient
            next_v = 0.999 * v + (1.0 - 0.999) * tf.square(gradient)
            update = next_m / (tf.sqrt(next_v) + 1e-6)
            if not any(re.search(pattern, name) for pattern in self.excluded):
                update += self.decay * variable
            changes += [variable.assign(variable - self.rate * update), m.assign(next_m), v.assign(next_v)]
        return tf.group(*changes, global_step.assign_add(1))


def model_fn(features, labels, mode, params):
    """A hidden layer of 6, and one output."""
    kind, rate, arguments = params["case"]
    hidden = v1.layers.dense(features, 6, tf.nn.tanh, name="hidden")
    error = v1.layers.dense(hidden, 1, name="logits") - labels
    loss = tf.identity(tf.reduce_mean(error**2), "the_loss")
    step = v1_train.get_or_create_global_step()
    rate = v1_train.exponential_decay(rate, step, **DECAYING)
    own = {"AdamWeightDecay": AdamWeightDecayOptimizer}
    optimizer = (own.get(kind) or getattr(v1_train, f"{kind}Optimizer"))(rate, **arguments)
    pairs = optimizer.compute_gradients(loss)
    for gradient, variable in pairs:
        tf.identity(gradient, f"gradient/{variable.op.name}")
    train_op = optimizer.apply_gradients(pairs, step)
    if params["averaged"]:
        with tf.control_dependencies([train_op]):
            train_op = v1_train.ExponentialMovingAverage(AVERAGE_DECAY, step).apply(v1.trainable_variables())
    return v1_estimator.tpu.TPUEstimatorSpec(mode, loss=loss, train_op=train_op)


class Recorder(v1_train.SessionRunHook):
    """The loss and the gradients of each step."""

    def __init__(self):
        self.losses, self.gradients = [], []

    def before_run(self, run_context):
        graph = run_context.session.graph
        gradients = {name: graph.get_tensor_by_name(f"gradient/{name}:0") for name in NAMES}
        return v1_train.SessionRunArgs({"loss": graph.get_tensor_by_name("the_loss:0"), "gradients": gradients})

    def after_run(self, run_context, run_values):
        self.losses.append(run_values.results["loss"])
        self.gradients.append(run_values.results["gradients"])


def data():
    """(x [40, 8, 4], y [40, 8, 1]): a batch for each step."""
    rng = np.random.RandomState(0)
    x = rng.randn(2 * STEPS, ROWS, 4).astype(np.float32)
    y = np.tanh(x @ [[1.0], [-2.0], [0.5], [0.3]]) + 0.1 * rng.randn(2 * STEPS, ROWS, 1)
    return x, y.astype(np.float32)


def record(directory, case, averaged=False):
    """Trains to step 20, keeps that checkpoint, and goes on to step 40."""
    x, y = data()
    model_dir = pathlib.Path(tempfile.mkdtemp())
    config = v1_estimator.tpu.RunConfig(model_dir=str(model_dir), tf_random_seed=1)
    params = {"case": case, "averaged": averaged}
    estimator = v1_estimator.tpu.TPUEstimator(
        model_fn, config=config, params=params, use_tpu=False, train_batch_size=ROWS
    )
    names = NAMES + AVERAGES if averaged else NAMES

    def train(first, last):
        recorder = Recorder()
        rows = tuple(np.concatenate(part[first:last]) for part in (x, y))
        estimator.train(
            lambda params: tf.data.Dataset.from_tensor_slices(rows).batch(ROWS, drop_remainder=True),
            hooks=[recorder],
            max_steps=last,
        )
        return recorder, {name: estimator.get_variable_value(name) for name in names}

    train(0, STEPS)
    directory.mkdir(parents=True)
    for file in model_dir.glob(f"model.ckpt-{STEPS}.*"):
        if file.suffix != ".meta":
            shutil.copy(file, directory)
    first, after_first = train(STEPS, STEPS + 1)
    rest, after_last = train(STEPS + 1, 2 * STEPS)
    np.savez_compressed(
        directory / "expected.npz",
        losses=np.array(first.losses + rest.losses),
        **{f"gradient/{name}": value for name, value in first.gradients[0].items()},
        **{f"next/{name}": value for name, value in after_first.items()},
        **{f"last/{name}": value for name, value in after_last.items()},
    )
    shutil.rmtree(model_dir)


def main(directory):
    """Records everything."""
    shutil.rmtree(directory, ignore_errors=True)
    for name, case in CASES.items():
        record(directory / name, case)
    record(directory / "averaged", CASES["adam"], averaged=True)
    x, y = data()
    np.savez_compressed(directory / "data.npz", x=x, y=y)
    document = {"tensorflow": tf.__version__, "steps": STEPS, "decaying": DECAYING, "average_decay": AVERAGE_DECAY}
    document["cases"] = CASES
    (directory / "cases.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else DATA)
