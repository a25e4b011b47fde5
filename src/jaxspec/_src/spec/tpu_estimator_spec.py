"""TPUEstimatorSpec: what model_fn returns."""

from typing import Any, NamedTuple, Self

import jax

from jaxspec._src.base.arrays import describe_array, is_tracer, named_leaves
from jaxspec._src.base.removed_arguments import explain_removed_arguments
from jaxspec._src.spec.captures import refuse_captured_tracers
from jaxspec._src.spec.estimator_spec import EstimatorSpec
from jaxspec._src.spec.hook import check_hooks
from jaxspec._src.spec.host_functions import HostCallHook, call_metric_fn, check_host_function, to_host
from jaxspec._src.spec.mode import ModeKeys
from jaxspec._src.spec.pytree import register
from jaxspec._src.spec.rules import check_arrays
from jaxspec._src.spec.scaffold import Scaffold, _mend_scaffold, call_scaffold_fn


class _TPUEstimatorSpecFields(NamedTuple):
    mode: Any
    predictions: Any = None
    loss: Any = None
    train_op: Any = None
    eval_metrics: Any = None
    export_outputs: Any = None
    scaffold_fn: Any = None
    host_call: Any = None
    training_hooks: Any = None
    evaluation_hooks: Any = None
    prediction_hooks: Any = None


@register
class TPUEstimatorSpec(_TPUEstimatorSpecFields):
    """What model_fn returns: arrays computed on the devices beside functions that consume them on the host.

    A namedtuple (fields 0 to 10 in this order) and a pytree whose leaves are the arrays. Checked when it is
    constructed and on `_replace`, never when a pytree is rebuilt. Fields that the mode does not need may be set
    and are ignored.

    Args:
      mode: a `ModeKeys` value.
      predictions: an array `[batch, ...]` of this shard, or a dict of them. Required in PREDICT.
      loss: a scalar of this shard's batch. Required in TRAIN and EVAL. Averaged over shards on the device; in evaluation
        over all rows, or by the weights of `global_mean`.
      train_op: from `minimize` or `apply_gradients`, a sequence of these, or an optax transformation. Required
        in TRAIN.
      eval_metrics: `(metric_fn, tensors)`. metric_fn gets the tensors of all shards, concatenated along axis 0,
        as NumPy arrays of its own on the host (list: by position, dict: by keyword) and returns `{name: metric value}`,
        or None. A scalar arrives as one entry for each shard; its mean is weighted by the rows behind each.
      export_outputs: a dict of `jaxspec.export` outputs by signature name.
      scaffold_fn: a function without arguments that returns a `Scaffold`; called on the host.
      host_call: `(fn, tensors)`, like eval_metrics, called on the host once per step, in step order.
      training_hooks, evaluation_hooks, prediction_hooks: iterables of `hooks.SessionRunHook`.

    Raises:
      ValueError, TypeError, RuntimeError: by TensorFlow's rules; the text says what to write instead.
    """

    __slots__ = ()

    @explain_removed_arguments
    def __new__(
        cls,
        mode: Any,
        predictions: Any = None,
        loss: Any = None,
        train_op: Any = None,
        eval_metrics: Any = None,
        export_outputs: Any = None,
        scaffold_fn: Any = None,
        host_call: Any = None,
        training_hooks: Any = None,
        evaluation_hooks: Any = None,
        prediction_hooks: Any = None,
    ) -> Self:
        eval_metrics = check_host_function("eval_metrics", eval_metrics)
        host_call = check_host_function("host_call", host_call)
        hooks = [
            _check_spec_hooks(role, value)
            for role, value in (
                ("training_hooks", training_hooks),
                ("evaluation_hooks", evaluation_hooks),
                ("prediction_hooks", prediction_hooks),
            )
        ]
        train_op, loss, predictions, export_outputs = check_arrays(mode, train_op, loss, predictions, export_outputs)
        if scaffold_fn is not None:
            if not callable(scaffold_fn):
                raise TypeError(f"scaffold_fn should be callable, given: {scaffold_fn!r}.")
            refuse_captured_tracers(scaffold_fn, "scaffold_fn", _mend_scaffold)
        return cls._make(
            (mode, predictions, loss, train_op, eval_metrics, export_outputs, scaffold_fn, host_call, *hooks)
        )

    def _replace(self, **kwargs: Any) -> Self:
        """A checked copy with some fields changed."""
        return type(self)(**{**self._asdict(), **kwargs})

    def as_estimator_spec(self) -> EstimatorSpec:
        """Turns the spec into metrics and host calls; on the host, on concrete arrays.

        metric_fn is called (EVAL only) and its result becomes `eval_metric_ops`; host_call becomes one hook,
        appended to the training and evaluation hooks; scaffold_fn is called; the rest is copied, arrays as NumPy.

        Raises:
          ValueError: on traced arrays (inside jit, pmap and the like), or if scaffold_fn returns None.
        """
        # Not the leaves of the spec itself: that takes Python code, and this is called at every step of a run.
        if any(map(is_tracer, jax.tree.leaves([value for value in self if not callable(value)]))):
            name, leaf = next((name, leaf) for name, leaf in named_leaves(self).items() if is_tracer(leaf))
            raise ValueError(
                f"as_estimator_spec was called while {name} is being traced ({describe_array(leaf)}); call it "
                "on the host, after js.gather. A model_fn returns the TPUEstimatorSpec as it is, on every device."
            )
        metrics = {}
        if self.mode == ModeKeys.EVAL and self.eval_metrics is not None:
            metrics = call_metric_fn(self.eval_metrics)
        host_calls = () if self.host_call is None else (HostCallHook(self.host_call),)
        scaffold = Scaffold() if self.scaffold_fn is None else call_scaffold_fn(self.scaffold_fn)
        predictions, loss, export_outputs = to_host((self.predictions, self.loss, self.export_outputs))
        # Not its constructor: all this was checked when the user made the spec, and a run does it at every step.
        return EstimatorSpec._make(
            (
                self.mode,
                {} if predictions is None else predictions,
                loss,
                self.train_op,
                metrics,
                export_outputs,
                (),
                (*(self.training_hooks or ()), *host_calls),
                scaffold,
                (*(self.evaluation_hooks or ()), *host_calls),
                tuple(self.prediction_hooks or ()),
            )
        )


@register
class WholeBatchSpec(TPUEstimatorSpec):
    """The spec of a step that nobody has mapped over shards: its leaves have no axis of shards."""

    __slots__ = ()


def replaced(spec: TPUEstimatorSpec, **fields: Any) -> TPUEstimatorSpec:
    """A copy with some fields changed and nothing checked: for specs that were checked when the user made them."""
    return TPUEstimatorSpec._make({**spec._asdict(), **fields}.values())


def _check_spec_hooks(role: str, hooks: Any) -> tuple[Any, ...]:
    checked = check_hooks(hooks, role=role)
    for index, hook in enumerate(checked):
        refuse_captured_tracers(
            hook,
            f"{role}[{index}] ({type(hook).__name__})",
            lambda name: (
                f"let the hook ask for it by name: SessionRunArgs({name!r}) in before_run gives the array that "
                f"host_call=(fn, {{{name!r}: {name}}}) hands over ('loss' is there without); in after_run it is run_values.results."
            ),
        )
    return checked
