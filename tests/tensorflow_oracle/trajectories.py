"""The training runs recorded from TensorFlow's TPUEstimator.

Variables are Flax-style collections: ``{"params": ...}``, with batch norm also ``{"batch_stats": ...}``.
Inside a collection the names are TensorFlow's (``w0``, ``bn0/gamma``), where ``/`` is a level of nesting.
"""

import itertools
import os
import pathlib

import numpy as np
import optax
from oracle_read import load, load_arrays
from tf_optimizers import make_optimizer
from tf_schedules import make_schedule

DATA = pathlib.Path(__file__).parent / "data"
PATH = pathlib.Path(os.environ.get("JAXSPEC_TRAJECTORIES") or DATA / "trajectories.json")
"""The recordings to replay. The environment variable names another file of the same kind."""


class Recording:
    """One recorded run: hyper-parameters, data, variables before and after, and what TensorFlow reported.

    Attributes:
      name: unique among the recordings.
      model: ``{"kind": "linear" | "mlp" | "conv", ...sizes}``; all but the first are classifiers.
      optimizer_name: describes the optimizer but for its learning rate.
      batch_norm, l2: what the model has besides; False and 0 where it has not.
      batch_size, steps_of_calls: for training; one number of steps for each train() call.
      data: ``train_x``, ``train_y``, ``eval_x``, ``eval_y``, ``predict_x``; integers in 32 bits.
      initial, final: variables before the first and after the last step.
      losses, learning_rates: of each step.
      evaluations: ``{tag: {"rows", "batch_size", "steps", "result"}}``, none where not recorded.
      prediction, predicted: ``{"rows", "batch_size", ...}`` and the arrays; None and {} where not recorded.
    """

    def __init__(self, case, arrays):
        self.name = case["name"]
        self.model = case["model"]
        self.is_classifier = self.model["kind"] != "linear"
        self.batch_norm = case.get("batch_norm", False)
        self.l2 = case.get("l2", 0.0)
        self.batch_size = case["batch_size"]
        self.steps_of_calls = case.get("calls") or [case["steps"]]
        data = _under(arrays, f"data/{case['model_name']}/")
        self.data = {key: x.astype(np.int32) if x.dtype == np.int64 else x for key, x in data.items()}
        weights = _under(arrays, f"init/{case['model_name']}/") | self._batch_norm_start()
        checkpoint = _under(arrays, f"final/{self.name}/")
        self.initial = _collections(weights)
        self.final = _collections({name: checkpoint[name] for name in weights})
        self.losses = case["expect"]["loss"]
        self.learning_rates = case["expect"]["learning_rate"]
        self.evaluations = case["expect"].get("evaluate", {})
        self.prediction = case["expect"].get("predict")
        self.predicted = _under(arrays, f"predict/{self.name}/")
        self._optimizer = case["optimizer"]
        self._clip_global_norm = case.get("clip_global_norm")
        self.optimizer_name = f"{self._optimizer}, clip_global_norm={self._clip_global_norm}"
        self._learning_rate = case["learning_rate"]
        self._schedule = case["schedule"]

    def schedule(self):
        """The learning rate as a function of the step."""
        return make_schedule(self._learning_rate, **self._schedule)

    def optimizer(self):
        """The optax transformation that does to the mean gradient of the batch what TensorFlow did."""
        optimizer = make_optimizer(learning_rate=self.schedule(), **self._optimizer)
        if self._clip_global_norm is None:
            return optimizer
        return optax.chain(optax.clip_by_global_norm(self._clip_global_norm), optimizer)

    def train_batches(self):
        """``(features, labels)`` of one train() call, which goes from the first row round and round."""
        in_epoch = len(self.data["train_x"]) // self.batch_size
        for step in itertools.count():
            start = step % in_epoch * self.batch_size
            rows = slice(start, start + self.batch_size)
            yield self.data["train_x"][rows], self.data["train_y"][rows]

    def _batch_norm_start(self):
        starts = {"gamma": np.ones, "beta": np.zeros, "moving_mean": np.zeros, "moving_variance": np.ones}
        widths = self.model["hidden"] if self.batch_norm else ()
        return {
            f"bn{layer}/{name}": start(width, np.float32)
            for layer, width in enumerate(widths)
            for name, start in starts.items()
        }


def load_recordings(path=PATH):
    """The recordings in the JSON file at ``path``, and in the archive of arrays beside it."""
    document = load(path)
    arrays = load_arrays(pathlib.Path(path).parent / document["arrays"])
    return [Recording(case, arrays) for case in document["cases"]]


def batches_of(array, rows, batch_size, steps=None):
    """The first ``rows`` rows in batches, of which the last may be shorter; at most ``steps`` of them."""
    starts = list(range(0, rows, batch_size))[:steps]
    return [array[start : min(start + batch_size, rows)] for start in starts]


def flatten(tree, prefix=""):
    """``{"bn0/gamma": array}`` from ``{"bn0": {"gamma": array}}``."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        name: leaf
        for key, child in tree.items()
        for name, leaf in flatten(child, f"{prefix}/{key}" if prefix else key).items()
    }


def _collections(weights):
    """TensorFlow's variables, by name, as collections."""
    variables = {}
    for name, value in weights.items():
        *outer, last = name.split("/")
        node = variables.setdefault("batch_stats" if last.startswith("moving_") else "params", {})
        for key in outer:
            node = node.setdefault(key, {})
        node[last] = value
    return variables


def _under(arrays, prefix):
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
