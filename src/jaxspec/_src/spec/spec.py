"""The spec: what model_fn returns, and what becomes of it on the host."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Self

import jax
import numpy as np

from jaxspec._src.base.arrays import describe_array, is_array, is_tracer, named_leaves
from jaxspec._src.base.tensorflow_arguments import answers
from jaxspec._src.spec.captures import note_captured_tracers, refuse_captured_tracers
from jaxspec._src.spec.export_outputs import check_export_outputs
from jaxspec._src.spec.hook import check_hooks
from jaxspec._src.spec.host_functions import HostCallHook, call_host_function, check_host_function, to_host
from jaxspec._src.spec.train_op import as_train_ops


class ModeKeys:
    """The modes of model_fn."""

    TRAIN = "train"
    EVAL = "eval"
    PREDICT = "infer"


class Scaffold:
    """What `scaffold_fn()` returns. Lives on the host.

    Args:
      init_fn: `variables -> variables`, run once on freshly initialised variables and never after a restore:
        the place where pretrained weights go in. Host code; it may read files.
    """

    def __init__(self, init_fn: Callable[[Any], Any] | None = None) -> None:
        if init_fn is not None and not callable(init_fn):
            raise TypeError(f"Scaffold: init_fn must be callable, given: {init_fn!r}.")
        self.init_fn = init_fn


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
        train_op, loss, predictions, export_outputs = _check_arrays(mode, train_op, loss, predictions, export_outputs)
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


_GONE = {
    "eval_metric_ops": "write eval_metrics=(metric_fn, tensors), where metric_fn(*tensors) returns {'name': jaxspec.metrics....}.",
    "scaffold": "write scaffold_fn=, a function that returns the Scaffold.",
    "training_chief_hooks": "write training_hooks=.",
}
"""What to write for arguments of TensorFlow's EstimatorSpec."""


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

    @answers(_GONE)
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
        train_op, loss, predictions, export_outputs = _check_arrays(mode, train_op, loss, predictions, export_outputs)
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
        metrics: Any = {}
        if self.mode == ModeKeys.EVAL and self.eval_metrics is not None:
            metrics = call_host_function("metric_fn", self.eval_metrics)
            if metrics is not None and not isinstance(metrics, Mapping):
                raise TypeError(
                    f"metric_fn must return a dict from names to metric values, given: {metrics!r}. Write "
                    "return {'accuracy': jaxspec.metrics.accuracy(labels, predictions)}."
                )
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
                {} if metrics is None else dict(metrics),
                export_outputs,
                (),
                (*(self.training_hooks or ()), *host_calls),
                scaffold,
                (*(self.evaluation_hooks or ()), *host_calls),
                tuple(self.prediction_hooks or ()),
            )
        )


class WholeBatchSpec(TPUEstimatorSpec):
    """The spec of a step that nobody has mapped over shards: its leaves have no axis of shards."""

    __slots__ = ()


def replaced(spec: TPUEstimatorSpec, **fields: Any) -> TPUEstimatorSpec:
    """A copy with some fields changed and nothing checked: for specs that were checked when the user made them."""
    return TPUEstimatorSpec._make({**spec._asdict(), **fields}.values())


def call_scaffold_fn(scaffold_fn: Callable[[], Any]) -> Scaffold:
    """Calls a spec's scaffold_fn; its exception comes back as itself."""
    try:
        scaffold = scaffold_fn()
    except BaseException as error:
        error.add_note("raised by scaffold_fn")
        note_captured_tracers(error, scaffold_fn, "scaffold_fn", _mend_scaffold)
        raise
    if scaffold is None:
        raise ValueError("TPUEstimatorSpec.scaffold_fn returns None, which is not allowed; return a jaxspec.Scaffold.")
    if not isinstance(scaffold, Scaffold):
        raise TypeError(f"scaffold_fn must return a jaxspec.Scaffold. Given: {scaffold!r}")
    return scaffold


def _mend_scaffold(name: str) -> str:
    return "let Scaffold.init_fn(variables) compute it from the variables it is given."


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


def _check_arrays(
    mode: Any, train_op: Any, loss: Any, predictions: Any, export_outputs: Any
) -> tuple[Any, Any, Any, Any]:
    """The rules for fields that both kinds of spec have, in TensorFlow's order."""
    if train_op is None:
        if mode == ModeKeys.TRAIN:
            raise ValueError("Missing train_op. In mode TRAIN write train_op=jaxspec.minimize(optax.adam(1e-3)).")
    else:
        ops = as_train_ops(train_op)
        train_op = ops[0] if len(ops) == 1 else ops
    if loss is None:
        if mode in (ModeKeys.TRAIN, ModeKeys.EVAL):
            raise ValueError(f"Missing loss. In mode {mode!r} the spec needs loss=, a scalar array.")
    else:
        loss = _check_loss(loss)
    if predictions is None:
        if mode == ModeKeys.PREDICT:
            raise ValueError("Missing predictions. In mode 'infer' the spec needs predictions=, an array or a dict.")
        predictions = {}
    elif isinstance(predictions, Mapping):
        for key, value in predictions.items():
            if not is_array(value):
                raise TypeError(f"predictions[{key}] must be an array, given: {value!r}.")
        predictions = dict(predictions)
    elif not is_array(predictions):
        raise TypeError(f"predictions must be an array or a dict of arrays, given: {predictions!r}.")
    if mode == ModeKeys.PREDICT:
        export_outputs = check_export_outputs(export_outputs, predictions)
    return train_op, loss, predictions, export_outputs


def _check_loss(loss: Any) -> Any:
    if not is_array(loss):
        raise TypeError(f"loss must be an array, given: {loss!r}. Use jnp.asarray(...) or a computed scalar.")
    if np.size(loss) != 1:
        raise ValueError(f"Loss must be scalar, given: {describe_array(loss)}. Reduce it, for example with .mean().")
    return loss.reshape(()) if loss.shape else loss


# The pytree registration: arrays are leaves, functions are static. Specs are rebuilt by `_make`, which checks nothing,
# because JAX rebuilds trees with tracers, None and object() as leaves.
_ARRAY_FIELDS = ("predictions", "loss", "train_op", "export_outputs", "eval_metric_ops")
_HOST_FUNCTION_FIELDS = ("eval_metrics", "host_call")


def _flatten(spec: Any) -> tuple[list[tuple[Any, Any]], tuple[Any, ...]]:
    children: list[tuple[Any, Any]] = []
    static: list[Any] = []
    for name, value in zip(spec._fields, spec, strict=True):
        key = jax.tree_util.GetAttrKey(name)
        if name in _ARRAY_FIELDS:
            children.append((key, value))
        elif name in _HOST_FUNCTION_FIELDS and value is not None:
            fn, tensors = value
            static.append(fn)
            children.append((key, tensors))
        elif name in _HOST_FUNCTION_FIELDS:
            static.append(None)
            children.append((key, None))
        else:
            static.append(value)
    return children, tuple(static)


def _unflatten(cls: Any, static: Iterable[Any], children: Iterable[Any]) -> Any:
    static, children = iter(static), iter(children)
    values = []
    for name in cls._fields:
        if name in _ARRAY_FIELDS:
            values.append(next(children))
        elif name in _HOST_FUNCTION_FIELDS:
            fn, tensors = next(static), next(children)
            values.append(None if fn is None else (fn, tensors))
        else:
            values.append(next(static))
    return cls._make(values)


for _cls in (TPUEstimatorSpec, WholeBatchSpec, EstimatorSpec):
    jax.tree_util.register_pytree_with_keys(_cls, _flatten, functools.partial(_unflatten, _cls))
