"""TPUEstimatorSpec: what model_fn returns; and EstimatorSpec, what becomes of it on the host."""

import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self, TypeAlias

from jaxspec._src.base.arrays import describe_array, is_tracer, named_leaves
from jaxspec._src.base.types import Array, HostFunction
from jaxspec._src.spec.captures import refuse_captured_tracers
from jaxspec._src.spec.export_outputs import ExportOutput, check_export_outputs
from jaxspec._src.spec.hook import SessionRunHook, check_hooks
from jaxspec._src.spec.host_functions import HostCallHook, call_metric_fn, check_host_function, to_host
from jaxspec._src.spec.loss_and_predictions import check_loss, check_predictions
from jaxspec._src.spec.mode import Mode, ModeKeys
from jaxspec._src.spec.namedtuple import checked, register_pytree
from jaxspec._src.spec.scaffold import Scaffold, call_scaffold_fn, check_scaffold_fn
from jaxspec._src.spec.train_op import TrainOpLike, check_train_op


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


class _TPUEstimatorSpecFields(NamedTuple):
    mode: Mode
    predictions: Array | Mapping[str, Array] | None = None
    loss: Array | None = None
    train_op: TrainOpLike | None = None
    eval_metrics: HostFunction | None = None
    export_outputs: Mapping[str, ExportOutput] | None = None
    scaffold_fn: Callable[[], Scaffold] | None = None
    host_call: HostFunction | None = None
    training_hooks: Sequence[SessionRunHook] | None = None
    evaluation_hooks: Sequence[SessionRunHook] | None = None
    prediction_hooks: Sequence[SessionRunHook] | None = None


@register_pytree
@checked()
class TPUEstimatorSpec(_TPUEstimatorSpecFields):
    """What model_fn returns: arrays computed on the devices beside functions that consume them on the host.

    A namedtuple (fields 0 to 10 in this order) and a pytree whose leaves are the arrays. It is checked when it is
    constructed and on `_replace`, never when a pytree is rebuilt. Fields that the mode does not need may be set
    and are ignored.

    Args:
      mode: a `ModeKeys` value.
      predictions: an array `[batch, ...]` of this shard, or a dict of them. Required in PREDICT.
      loss: a scalar of this shard's batch. Required in TRAIN and EVAL. It is averaged over shards on the device; in
        evaluation over all rows, or by the weights of `global_mean`.
      train_op: from `minimize` or `apply_gradients`, a sequence of these, or an optax transformation. Required
        in TRAIN.
      eval_metrics: `(metric_fn, tensors)`. metric_fn is called on the host with the tensors of all shards, concatenated
        along axis 0, as NumPy arrays of its own (a list: by position, a dict: by keyword) and returns
        `{name: metric value}`, or None. A scalar arrives as one entry for each shard; its mean is weighted by the rows
        of each.
      export_outputs: a dict of `jaxspec.export` outputs by signature name.
      scaffold_fn: a function without arguments that returns a `Scaffold`; called on the host.
      host_call: `(fn, tensors)`, as in eval_metrics; called on the host once for each step, in the order of the steps.
        `fetches` makes one that only names arrays for hooks.
      training_hooks, evaluation_hooks, prediction_hooks: sequences of `hooks.SessionRunHook`.

    Raises:
      ValueError, TypeError, RuntimeError: by TensorFlow's rules; the message says what to write instead.
    """

    __slots__ = ()

    def _checked(self) -> Self:
        # In this order, which is TensorFlow's: the first mistake is the one that is raised.
        return super()._replace(
            eval_metrics=check_host_function("eval_metrics", self.eval_metrics),
            host_call=check_host_function("host_call", self.host_call),
            training_hooks=_check_spec_hooks("training_hooks", self.training_hooks),
            evaluation_hooks=_check_spec_hooks("evaluation_hooks", self.evaluation_hooks),
            prediction_hooks=_check_spec_hooks("prediction_hooks", self.prediction_hooks),
            train_op=check_train_op(self.mode, self.train_op),
            loss=check_loss(self.mode, self.loss),
            predictions=(predictions := check_predictions(self.mode, self.predictions)),
            export_outputs=check_export_outputs(self.mode, self.export_outputs, predictions),
            scaffold_fn=check_scaffold_fn(self.scaffold_fn),
        )

    def as_estimator_spec(self) -> EstimatorSpec:
        """Turns the spec into metrics and host calls; on the host, on concrete arrays.

        metric_fn is called (EVAL only) and its result becomes `eval_metric_ops`; host_call becomes one hook,
        appended to the training and evaluation hooks; scaffold_fn is called; the rest is copied, arrays as NumPy.

        Raises:
          ValueError: on traced arrays (inside jit, pmap and the like), or if scaffold_fn returns None.
          TypeError: if metric_fn does not return a dict, or scaffold_fn no Scaffold.
        """
        traced = [(name, leaf) for name, leaf in named_leaves(self).items() if is_tracer(leaf)]
        if traced:
            name, leaf = traced[0]
            raise ValueError(
                f"as_estimator_spec was called while {name} is being traced ({describe_array(leaf)}); call it "
                "on the host, after js.gather. A model_fn returns the TPUEstimatorSpec as it is, on every device."
            )
        metrics = {}
        if self.mode == ModeKeys.EVAL and self.eval_metrics is not None:
            metrics = call_metric_fn(self.eval_metrics)
        host_calls = () if self.host_call is None else (HostCallHook(self.host_call),)
        predictions, loss, export_outputs = to_host((self.predictions, self.loss, self.export_outputs))
        # `_make` checks nothing: all this was checked when the user made the spec.
        return EstimatorSpec._make(
            _EstimatorSpecFields(
                mode=self.mode,
                predictions={} if predictions is None else predictions,
                loss=loss,
                train_op=self.train_op,
                eval_metric_ops=metrics,
                export_outputs=export_outputs,
                training_hooks=(*(self.training_hooks or ()), *host_calls),
                scaffold=Scaffold() if self.scaffold_fn is None else call_scaffold_fn(self.scaffold_fn),
                evaluation_hooks=(*(self.evaluation_hooks or ()), *host_calls),
                prediction_hooks=tuple(self.prediction_hooks or ()),
            )
        )


ModelFn: TypeAlias = Callable[..., TPUEstimatorSpec]
"""Called by keyword with those of its arguments that it names."""


@register_pytree
class WholeBatchSpec(TPUEstimatorSpec):
    """The spec of a step that nobody has mapped over shards: its leaves have no axis of shards."""

    __slots__ = ()


def replaced(spec: TPUEstimatorSpec, **fields: object) -> TPUEstimatorSpec:
    """A copy with some fields changed and nothing checked: for specs that were checked when the user made them."""
    return TPUEstimatorSpec._make({**spec._asdict(), **fields}.values())


def _check_spec_hooks(role: str, hooks: object) -> tuple[SessionRunHook, ...]:
    checked_hooks = check_hooks(hooks, role=role)
    for index, hook in enumerate(checked_hooks):
        refuse_captured_tracers(hook, f"{role}[{index}] ({type(hook).__name__})", _instead)
    return checked_hooks


def _instead(name: str) -> str:
    return (
        f"let the hook ask for it by name: SessionRunArgs({name!r}) in before_run requests the array that "
        f"host_call=jaxspec.fetches({name}={name}) names ('loss' has a name already); in after_run it is "
        "run_values.results."
    )
