"""jaxspec: one TPUEstimator, as its README says."""

import inspect
import itertools

import jax
from workloads import batches_of, loss_of, odd

import jaxspec as js

RESIDENT = "resident" in inspect.signature(js.inputs.numpy_input_fn).parameters
"""Whether numpy_input_fn can keep the data on the devices."""
QUIET = {
    "save_checkpoints_steps": None,
    "save_checkpoints_secs": None,
    "save_summary_steps": None,
    "log_step_count_steps": None,
    "progress_bar": False,
}
"""Of RunConfig: what no other side does either is switched off."""


def auc(labels, odd):
    return {"auc": js.metrics.auc(labels % 2, odd)}


def accuracy(labels, classes):
    return {"accuracy": js.metrics.accuracy(labels, classes)}


def both(labels, classes, odd):
    return accuracy(labels, classes) | auc(labels, odd)


METRICS = {
    "loss only": lambda labels, logits: None,
    "accuracy": lambda labels, logits: (accuracy, [labels, logits.argmax(-1)]),
    "AUC": lambda labels, logits: (auc, [labels, odd(logits)]),
    "accuracy and AUC": lambda labels, logits: (both, [labels, logits.argmax(-1), odd(logits)]),
}


def model_fn_of(workload, metric="loss only", host_call=lambda loss: None):
    """The model_fn of a workload."""

    def model_fn(variables, features, labels, mode):
        logits = workload.logits(variables, features)
        if mode == js.ModeKeys.PREDICT:
            return js.TPUEstimatorSpec(mode, predictions={"probabilities": jax.nn.softmax(logits)})
        loss = loss_of(logits, labels)
        return js.TPUEstimatorSpec(
            mode,
            loss=loss,
            train_op=js.minimize(workload.optimizer()),
            eval_metrics=METRICS[metric](labels, logits),
            host_call=host_call(loss),
        )

    return model_fn


class Estimator:
    """Trains, evaluates and predicts.

    Args:
      given: whether train is given a list of batches, and not numpy_input_fn.
      resident: numpy_input_fn's argument, where it has one.
      tpu: arguments of TPUConfig.
      config: arguments of RunConfig, besides QUIET.
    """

    def __init__(
        self, workload, data, *, metric="loss only", given=False, resident=None, host_call=None, tpu=(), **config
    ):
        self.workload, (self.x, self.y) = workload, data
        self.given = batches_of(workload, data) if given else None
        self.input_options = {} if resident is None or not RESIDENT else {"resident": resident}
        self.estimator = js.TPUEstimator(
            model_fn_of(workload, metric, **({"host_call": host_call} if host_call else {})),
            workload.module,
            config=js.RunConfig(js.TPUConfig(**({"num_shards": 1} | dict(tpu))), **(QUIET | config)),
            train_batch_size=workload.batch,
            eval_batch_size=workload.batch,
            predict_batch_size=workload.batch,
        )
        self.train_input = self.input_fn(self.x, self.y, num_epochs=None, shuffle=True)
        self.eval_input, self.predict_input = self.input_fn(self.x, self.y), self.input_fn(self.x)

    def input_fn(self, *arrays, **options):
        """A numpy_input_fn."""
        return js.inputs.numpy_input_fn(*arrays, **options, **self.input_options)

    def train(self, steps=None, hooks=()):
        """Trains on the set, or for so many steps."""
        source = self.train_input if self.given is None else lambda: itertools.cycle(self.given)
        self.estimator.train(source, steps=steps or self.workload.steps, hooks=hooks)

    def evaluate(self):
        """Loss, and the metric, of the set."""
        return self.estimator.evaluate(self.eval_input)

    def predict(self, one_by_one=False):
        """Yields the predictions of each batch, or of each example."""
        return self.estimator.predict(self.predict_input, yield_single_examples=one_by_one)


def inputs():
    """{name of the side: arguments of Estimator} for each kind of training input."""
    kinds = {"jaxspec, streamed": {"resident": False}, "jaxspec, batches given": {"given": True}}
    return {"jaxspec, resident": {"resident": True}} | kinds if RESIDENT else kinds
