"""EstimatorSpec: a spec on the host, with the results of its host functions."""

import types
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

from jaxspec._src.base.types import Array
from jaxspec._src.spec.export_outputs import ExportOutput
from jaxspec._src.spec.hook import SessionRunHook, check_hooks
from jaxspec._src.spec.mode import Mode
from jaxspec._src.spec.namedtuple import checked, register_pytree
from jaxspec._src.spec.rules import check_arrays
from jaxspec._src.spec.scaffold import Scaffold
from jaxspec._src.spec.train_op import TrainOpLike


class _EstimatorSpecFields(NamedTuple):
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
class EstimatorSpec(_EstimatorSpecFields):
    """What `TPUEstimatorSpec.as_estimator_spec()` returns: a spec on the host, with the results of its host functions.

    `eval_metric_ops` maps names to metric values (`merge`, `compute`); the other fields are as in
    `TPUEstimatorSpec`. A namedtuple, checked when it is constructed and on `_replace`, which cannot change the mode.
    """

    __slots__ = ()

    def _checked(self) -> Self:
        train_op, loss, predictions, export_outputs = check_arrays(self)
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
            predictions=predictions,
            loss=loss,
            train_op=train_op,
            eval_metric_ops=dict(metrics),
            export_outputs=export_outputs,
            training_chief_hooks=check_hooks(self.training_chief_hooks, role="training_chief_hooks"),
            training_hooks=check_hooks(self.training_hooks, role="training_hooks"),
            scaffold=scaffold,
            evaluation_hooks=check_hooks(self.evaluation_hooks, role="evaluation_hooks"),
            prediction_hooks=check_hooks(self.prediction_hooks, role="prediction_hooks"),
        )
