"""EstimatorSpec: a spec on the host, its host functions called."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

from jaxspec._src.spec.hook import check_hooks
from jaxspec._src.spec.pytree import register
from jaxspec._src.spec.rules import check_arrays
from jaxspec._src.spec.scaffold import Scaffold


class _EstimatorSpecFields(NamedTuple):
    mode: Any
    predictions: Any = None
    loss: Any = None
    train_op: Any = None
    eval_metric_ops: Any = None
    export_outputs: Any = None
    training_chief_hooks: Any = None
    training_hooks: Any = None
    scaffold: Any = None
    evaluation_hooks: Any = None
    prediction_hooks: Any = None


@register
class EstimatorSpec(_EstimatorSpecFields):
    """What `TPUEstimatorSpec.as_estimator_spec()` returns: a spec on the host, its host functions called.

    `eval_metric_ops` maps names to metric values (`merge`, `compute`), the other fields are as in
    `TPUEstimatorSpec`. A namedtuple, checked when it is constructed and on `_replace`.
    """

    __slots__ = ()

    def __new__(
        cls,
        mode: Any,
        predictions: Any = None,
        loss: Any = None,
        train_op: Any = None,
        eval_metric_ops: Any = None,
        export_outputs: Any = None,
        training_chief_hooks: Any = None,
        training_hooks: Any = None,
        scaffold: Any = None,
        evaluation_hooks: Any = None,
        prediction_hooks: Any = None,
    ) -> Self:
        train_op, loss, predictions, export_outputs = check_arrays(mode, train_op, loss, predictions, export_outputs)
        if eval_metric_ops is None:
            eval_metric_ops = {}
        if not isinstance(eval_metric_ops, Mapping):
            raise TypeError(
                f"eval_metric_ops must be a dict, given: {eval_metric_ops!r}. metric_fn returns "
                "{'name': jaxspec.metrics.mean(...)}."
            )
        if scaffold is None:
            scaffold = Scaffold()
        elif not isinstance(scaffold, Scaffold):
            raise TypeError(f"scaffold must be jaxspec.Scaffold. Given: {scaffold!r}")
        return cls._make(
            (
                mode,
                predictions,
                loss,
                train_op,
                dict(eval_metric_ops),
                export_outputs,
                check_hooks(training_chief_hooks, role="training_chief_hooks"),
                check_hooks(training_hooks, role="training_hooks"),
                scaffold,
                check_hooks(evaluation_hooks, role="evaluation_hooks"),
                check_hooks(prediction_hooks, role="prediction_hooks"),
            )
        )

    def _replace(self, **kwargs: Any) -> Self:
        """A checked copy with some fields changed; the mode cannot be."""
        if "mode" in kwargs and kwargs["mode"] != self.mode:
            raise ValueError("mode of EstimatorSpec cannot be changed.")
        return type(self)(**{**self._asdict(), **kwargs})
