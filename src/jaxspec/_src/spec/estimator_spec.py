"""EstimatorSpec: a spec on the host, with the results of its host functions."""

import types
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

from jaxspec._src.base.types import Array
from jaxspec._src.spec.export_outputs import ExportOutput, check_export_outputs
from jaxspec._src.spec.hook import SessionRunHook, check_hooks
from jaxspec._src.spec.loss_and_predictions import check_loss, check_predictions
from jaxspec._src.spec.mode import Mode
from jaxspec._src.spec.namedtuple import checked, register_pytree
from jaxspec._src.spec.scaffold import Scaffold
from jaxspec._src.spec.train_op import TrainOpLike, check_train_op


class EstimatorSpecFields(NamedTuple):
    mode: Mode
    predictions: Array | Mapping[str, Array] | None = None
    loss: Array | None = None
    train_op: TrainOpLike | None = None
    eval_metric_ops: Mapping[str, Any] = types.MappingProxyType({})
    export_outputs: Mapping[str, ExportOutput] | None = None
    training_chief_hooks: Sequence[SessionRunHook] = ()
    training_hooks: Sequence[SessionRunHook] = ()
    scaffold: Scaffold = Scaffold()
    evaluation_hooks: Sequence[SessionRunHook] = ()
    prediction_hooks: Sequence[SessionRunHook] = ()


@register_pytree
@checked(fixed=["mode"])
class EstimatorSpec(EstimatorSpecFields):
    """What `TPUEstimatorSpec.as_estimator_spec()` returns: a spec on the host, with the results of its host functions.

    `eval_metric_ops` maps names to metric values (`merge`, `compute`); the other fields are as in
    `TPUEstimatorSpec`. A namedtuple, checked when it is constructed and on `_replace`, which cannot change the mode.
    """

    __slots__ = ()

    def _checked(self) -> Self:
        metrics = {} if self.eval_metric_ops is None else self.eval_metric_ops
        if not isinstance(metrics, Mapping):
            raise TypeError(
                f"eval_metric_ops must be a dict, given: {metrics!r}. metric_fn returns "
                "{'name': jaxspec.metrics.mean(...)}."
            )
        scaffold = Scaffold() if self.scaffold is None else self.scaffold
        if not isinstance(scaffold, Scaffold):
            raise TypeError(f"scaffold must be jaxspec.Scaffold. Given: {scaffold!r}")
        return super()._replace(
            train_op=check_train_op(self.mode, self.train_op),
            loss=check_loss(self.mode, self.loss),
            predictions=(predictions := check_predictions(self.mode, self.predictions)),
            export_outputs=check_export_outputs(self.mode, self.export_outputs, predictions),
            eval_metric_ops=dict(metrics),
            training_chief_hooks=check_hooks(self.training_chief_hooks, role="training_chief_hooks"),
            training_hooks=check_hooks(self.training_hooks, role="training_hooks"),
            scaffold=scaffold,
            evaluation_hooks=check_hooks(self.evaluation_hooks, role="evaluation_hooks"),
            prediction_hooks=check_hooks(self.prediction_hooks, role="prediction_hooks"),
        )
