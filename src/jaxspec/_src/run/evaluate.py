"""evaluate: metrics of every example of the input, once."""

import contextlib
import logging
import pickle
from collections.abc import Mapping

from jaxspec._src.base.activities import doing
from jaxspec._src.base.types import InputFn, Metrics
from jaxspec._src.checkpoint.latest import checkpoint_path as path_of_checkpoint
from jaxspec._src.device.processes import Exchange
from jaxspec._src.metrics.collect import computed
from jaxspec._src.metrics.metric import Mergeable
from jaxspec._src.metrics.metric_fn_values import as_metric
from jaxspec._src.run.engine import Engine
from jaxspec._src.run.evaluation_loss import EvaluationLoss
from jaxspec._src.run.host_batches import HostBatch
from jaxspec._src.run.inference_run import InferenceRun
from jaxspec._src.run.summaries import run_writer, write_results
from jaxspec._src.run.validate import no_batch_message
from jaxspec._src.run.watchdog import watched
from jaxspec._src.spec.fetches import without_fetches
from jaxspec._src.spec.hook import SessionRunHook
from jaxspec._src.spec.host_functions import call_host_function, call_metric_fn
from jaxspec._src.spec.mode import ModeKeys
from jaxspec._src.spec.tpu_estimator_spec import TPUEstimatorSpec, replaced
from jaxspec._src.summary.context import run_position
from jaxspec._src.summary.writer import SummaryWriter

_logger = logging.getLogger("jaxspec")
_LARGE_BYTES = 64 << 20
"""Metrics that are larger get a warning when they are sent to other processes."""


def evaluate(
    engine: Engine,
    input_fn: InputFn,
    steps: int | None,
    hooks: tuple[SessionRunHook, ...],
    checkpoint_path: str | None,
    eval_dir: str,
) -> Metrics:
    """`TPUEstimator.evaluate`, with its arguments checked."""
    engine.announce()
    with (
        engine.clock.stopped(),
        watched("evaluation", engine.config.stall_timeout_secs),
        engine.exchange(ModeKeys.EVAL) as exchange,
        contextlib.closing(engine.agreed_source(exchange, engine.source(checkpoint_path))) as source,
    ):
        exchange.compare({**engine.fingerprint(ModeKeys.EVAL), "the directory of the results": eval_dir})
        with (
            contextlib.closing(engine.open_input(input_fn, ModeKeys.EVAL, limit=steps)) as infeed,
            run_writer(engine.config, eval_dir) as writer,
        ):
            if infeed.first is None and exchange.count == 1:
                raise ValueError(no_batch_message(input_fn, "Evaluation"))
            writer.warn_if_unwritable()
            metrics = MetricsOfBatches(source.step, writer)
            if infeed.first is not None:
                with doing("evaluation"), contextlib.ExitStack() as stack:
                    run = InferenceRun(
                        stack, engine, ModeKeys.EVAL, source, infeed, hooks, writer, steps, wanted=_without_fetches
                    )
                    while run.next_batch(metrics.add) is not None:
                        exchange.check()
                    run.end()
            if not any(exchange.gather("input", infeed.first is not None)):
                raise ValueError(no_batch_message(input_fn, "Evaluation"))
            metrics.merge_processes(exchange)
            results = metrics.compute()
            write_results(results, source.path or path_of_checkpoint(engine.model_dir, source.step), writer)
    return results


def _without_fetches(spec: TPUEstimatorSpec) -> TPUEstimatorSpec:
    return replaced(spec, host_call=without_fetches(spec.host_call))


def _pickled(name: str, metric: Mergeable) -> bytes:
    """A metric as bytes for the other processes; TypeError for one that cannot be sent."""
    try:
        return pickle.dumps(metric)
    except Exception as error:
        raise TypeError(
            f"metric {name!r} is a {type(metric).__name__}, which cannot be pickled, and so cannot be sent to the "
            f"other processes ({type(error).__name__}: {error}). Define its class and functions at the top of a "
            "module, or return a metric of jaxspec.metrics."
        ) from error


class MetricsOfBatches:
    """The metrics of an evaluation, batch by batch; the loss is weighted as `EvaluationLoss` says.

    Args:
      step: the global step of the state.
      writer: of the evaluation's event files, for what host functions write.
    """

    def __init__(self, step: int, writer: SummaryWriter) -> None:
        self._step, self._writer, self._number = step, writer, 0
        self._metrics: dict[str, Mergeable] = {}
        self._loss = EvaluationLoss()

    def add(self, batch: HostBatch) -> None:
        """Calls metric_fn and host_call on one batch, and merges its metrics."""
        spec = batch.spec
        try:
            with run_position(self._step, self._writer, in_evaluation=True):
                values = {} if spec.eval_metrics is None else call_metric_fn(spec.eval_metrics)
                if host_call := without_fetches(spec.host_call):
                    call_host_function("host_call", host_call)
        except BaseException as error:
            error.add_note(f"in evaluation, at batch {self._number} (counted from 0)")
            raise
        metrics = {name: as_metric(name, value, batch.rows) for name, value in values.items()}
        for name in ("loss", "global_step"):
            if name in metrics:
                raise ValueError(
                    f'Metric with name "{name}" is not allowed, because Estimator '
                    f"already defines a default metric with the "
                    "same name. Choose another name in metric_fn."
                )
        if self._number and metrics.keys() != self._metrics.keys():
            raise ValueError(
                f"metric_fn returned {sorted(metrics)} for this batch and {sorted(self._metrics)} before; it must "
                "return the same names for every batch."
            )
        self._merge(metrics, batch.loss, 1)

    def _merge(self, metrics: Mapping[str, Mergeable], loss: EvaluationLoss, number: int) -> None:
        self._loss.merge(loss)
        self._metrics = {
            name: self._metrics[name].merge(metric) if self._number else metric for name, metric in metrics.items()
        }
        self._number += number

    def merge_processes(self, exchange: Exchange) -> None:
        """Merges what all processes have, in their order, so that all have the same. Each gets what the others have."""
        if exchange.count == 1:
            return
        mine = {name: _pickled(name, metric) for name, metric in self._metrics.items()}
        size = sum(map(len, mine.values()))
        if size > _LARGE_BYTES:
            _logger.warning(
                "The metrics of this evaluation take %d MB in process %d, which are sent to every other process. "
                "metrics.collect keeps all values of its tensors: evaluate them in parts, or as a metric.",
                *(size >> 20, exchange.index),
            )
        parts = [part for part in exchange.gather("metrics", (mine, self._loss, self._number)) if part[2]]
        names = [sorted(metrics) for metrics, _, _ in parts]
        if any(one != names[0] for one in names):
            raise ValueError(
                f"metric_fn returned different names in different processes: {names}; it must return the same ones."
            )
        self._metrics, self._loss, self._number = {}, EvaluationLoss(), 0
        for metrics, loss, number in parts:
            self._merge({name: pickle.loads(metric) for name, metric in metrics.items()}, loss, number)

    def compute(self) -> Metrics:
        """The metrics by name, `loss` and `global_step`."""
        if not self._number:
            raise ValueError("Evaluation was stopped by a hook before its first batch: there is nothing to report.")
        if self._loss.inexact:
            _logger.warning(
                "The loss of this evaluation is not exactly the weighted mean of the whole set: a global_mean of it "
                "runs several times (in a scan, or under vmap) with unequal weights, and batches are weighted by their "
                "mean. Call global_mean once for each weights, in a Python loop, or once outside with all values and "
                "weights."
            )
        return {**computed(self._metrics), "loss": self._loss.compute(), "global_step": self._step}
