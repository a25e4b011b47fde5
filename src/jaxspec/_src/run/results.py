"""What evaluate and predict make of the host specs of their batches."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxspec._src.metrics.accept import as_metric
from jaxspec._src.run.evaluation_loss import EvaluationLoss
from jaxspec._src.run.host_calls import on_host, run_host_call
from jaxspec._src.spec.tpu_estimator_spec import TPUEstimatorSpec
from jaxspec._src.summary.context import run_position
from jaxspec._src.summary.writer import SummaryWriter

_logger = logging.getLogger("jaxspec")


class MetricsOfBatches:
    """The metrics of an evaluation, batch by batch; the loss is weighted as `EvaluationLoss` says.

    Args:
      step: the global step of the state.
      writer: of the evaluation's event files, for what host functions write.
    """

    def __init__(self, step: int, writer: SummaryWriter) -> None:
        self._step, self._writer, self._number = step, writer, 0
        self._metrics: dict[str, Any] = {}
        self._loss = EvaluationLoss()

    def add(self, host_spec: TPUEstimatorSpec, rows: int, loss: EvaluationLoss) -> None:
        """Calls metric_fn and host_call on one batch of `rows` examples, whose loss has these sums."""
        try:
            with run_position(self._step, self._writer, in_evaluation=True):
                spec = on_host(host_spec)
                run_host_call(spec)
        except BaseException as error:
            error.add_note(f"in evaluation, at batch {self._number} (counted from 0)")
            raise
        self._loss.merge(loss)
        values = {name: as_metric(name, value, rows) for name, value in spec.eval_metric_ops.items()}
        _check_metric_names(values, self._metrics if self._number else values)
        self._metrics = {
            name: self._metrics[name].merge(value) if self._number else value for name, value in values.items()
        }
        self._number += 1

    def compute(self) -> dict[str, Any]:
        """The metrics by name, `loss` and `global_step`."""
        if not self._number:
            raise ValueError("Evaluation was stopped by a hook before its first batch: there is nothing to report.")
        if self._loss.inexact:
            _logger.warning(
                "The loss of this evaluation is not exactly the weighted mean of the whole set: a global_mean of it runs "
                "several times (in a scan, or under vmap) with unequal weights, and batches are weighted by their mean. Call "
                "global_mean once for each weights, in a Python loop, or once outside with all values and weights."
            )
        results = {name: metric.compute() for name, metric in self._metrics.items()}
        return {**results, "loss": self._loss.compute(), "global_step": self._step}


def _check_metric_names(values: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    for name in ("loss", "global_step"):
        if name in values:
            raise ValueError(
                f'Metric with name "{name}" is not allowed, because Estimator already defines a default metric with the '
                "same name. Choose another name in metric_fn."
            )
    if values.keys() != before.keys():
        raise ValueError(
            f"metric_fn returned {sorted(values)} for this batch and {sorted(before)} before; it must return the same "
            "names for every batch."
        )


def choose_keys(predictions: Any, keys: Any) -> Any:
    """The predictions under `keys` (None or empty: all); unknown keys are ignored if one is known, else ValueError."""
    if not keys:
        return predictions
    if not isinstance(predictions, Mapping):
        raise ValueError("predict_keys argument is not valid in case of non-dict predictions.")
    wanted = {keys} if isinstance(keys, str) else set(keys)
    chosen = {key: value for key, value in predictions.items() if key in wanted}
    if not chosen:
        raise ValueError(f"Expected to run at least one output from {list(predictions)}, provided {keys}.")
    return chosen


def examples(predictions: Any, single: bool, rows: int) -> Iterator[Any]:
    """The predictions of a batch of `rows` examples, one at a time or all at once; ValueError for other lengths.

    They are the caller's own, and may be written to.
    """
    predictions = jax.tree.map(np.array, predictions)
    if not single:
        yield predictions
        return
    if not isinstance(predictions, Mapping):
        _check_length("predictions", len(predictions), rows)
        yield from predictions
        return
    sizes = {key: len(value) for key, value in predictions.items()}
    length = next(iter(sizes.values()))
    for key, size in sizes.items():
        if size != length:
            raise ValueError(
                f"Batch length of predictions should be same. {key} has different batch length than others: {sizes}. "
                "Give every prediction a leading batch axis, or use yield_single_examples=False."
            )
    _check_length(f"predictions[{next(iter(sizes))!r}]", length, rows)
    for i in range(length):
        yield {key: value[i] for key, value in predictions.items()}


def _check_length(name: str, length: int, rows: int) -> None:
    if length != rows:
        raise ValueError(
            f"{name} has {length} entries for a batch of {rows} examples, over all shards; it must have one for each. Give it "
            "a leading batch axis (a scalar has one entry for each shard), or use yield_single_examples=False."
        )
