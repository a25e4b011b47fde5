"""eval_metrics and host_call, the pairs `(function, tensors)` of a spec: checks, and the call on the host."""

import inspect
from collections.abc import Mapping

import jax
import numpy as np

from jaxspec._src.base.arrays import describe_array, is_array, is_key
from jaxspec._src.base.callables import argument_names, describe
from jaxspec._src.base.types import AnyFunction, Array, HostFunction, PyTree
from jaxspec._src.spec.captures import note_captured_tracers, refuse_captured_tracers
from jaxspec._src.spec.hook import SessionRunContext, SessionRunHook, SessionRunValues

_INSTEAD = {
    "metric_fn": "pass it: eval_metrics=(metric_fn, [..., {}])",
    "host_call": "pass it: host_call=(fn, [..., {}])",
}
"""What to write for an array that a host function has captured."""


def check_host_function(field: str, pair: object) -> HostFunction | None:
    """Checks `eval_metrics` or `host_call` by TensorFlow's rules, when a user makes the spec."""
    if pair is None:
        return None
    example = f"{field}=(fn, [tensor, ...]) or (fn, {{'argument': tensor}})"
    if not isinstance(pair, tuple | list):
        raise ValueError(f"{field} should be tuple or list, given: {type(pair).__name__}. Write {example}.")
    if len(pair) != 2:
        raise ValueError(f"{field} should have two elements, given {len(pair)}. Write {example}.")
    fn, tensors = pair
    if not callable(fn):
        raise TypeError(f"{field}[0] should be callable, given: {fn!r}. Write {example}.")
    if not isinstance(tensors, tuple | list | dict):
        raise ValueError(
            f"{field}[1] should be tuple or list, or dict, given: {type(tensors).__name__}. Write {example}."
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(tensors):
        if not is_array(leaf) and not isinstance(leaf, bool | int | float):
            raise TypeError(
                f"{field}[1]{jax.tree_util.keystr(path)} must be an array or a number, given: {leaf!r}. Bind other "
                "things to the function: functools.partial(fn, ...)."
            )
        refuse_key(f"{field}[1]{jax.tree_util.keystr(path)}", leaf)
    if not isinstance(tensors, dict):
        _check_count(field, fn, len(tensors))
    role = "metric_fn" if field == "eval_metrics" else field
    refuse_captured_tracers(fn, role, _INSTEAD[role].format)
    return fn, tensors


def refuse_key(what: str, value: Array | float) -> None:
    """Raises TypeError for typed random keys, which NumPy cannot hold."""
    if is_array(value) and is_key(value):
        raise TypeError(
            f"{what} is {describe_array(value)}: typed random keys cannot be passed to the host. Write "
            "jax.random.key_data(key)."
        )


def _check_count(field: str, fn: AnyFunction, count: int) -> None:
    try:
        signature = inspect.signature(fn)
    except ValueError:  # some callables written in C have no signature
        return
    try:
        signature.bind(*[None] * count)
    except TypeError as error:
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        positional = [p for p in signature.parameters.values() if p.kind in kinds]
        least = sum(p.default is inspect.Parameter.empty for p in positional)
        takes = len(positional) if least == len(positional) else f"{least} to {len(positional)}"
        raise RuntimeError(
            f"In TPUEstimatorSpec.{field}, length of tensors {count} does not match method args of the function, which "
            f"takes {takes}: {describe(fn)}{signature}; {error}. Pass one tensor for each argument that has no default."
        ) from None


def check_keywords(field: str, pair: HostFunction | None) -> None:
    """Raises TypeError if the keys of dict tensors are not what the function takes.

    TensorFlow accepts such a spec and fails when the function is called. Here the first call comes after a compiled
    step, so this check comes before the compilation.
    """
    fn, tensors = pair or (None, None)
    if fn is None or not isinstance(tensors, dict):
        return
    try:
        inspect.signature(fn).bind(**tensors)
    except TypeError as error:
        raise TypeError(
            f"{field}: the tensors do not match the function's arguments: {error}. Tensors: {sorted(tensors)}; "
            f"{describe(fn)} takes {argument_names(fn)[0]}. A dict is passed by keyword: use the same names."
        ) from None
    except ValueError:  # some callables written in C have no signature
        pass


def call_host_function(role: str, pair: HostFunction) -> object:
    """Calls the function with NumPy arrays of its own, which it may write to. Its exception is raised with a note.

    Args:
      role: "metric_fn" or "host_call", for the note.
    """
    fn, tensors = pair
    leaves, structure = jax.tree.flatten(tensors)
    # A copy: arrays of JAX cannot be written to, and another function may be passed the same ones.
    args = jax.tree.unflatten(structure, [np.array(x, subok=True) for x in to_host(leaves)])
    try:
        return fn(**args) if isinstance(args, dict) else fn(*args)
    except BaseException as error:
        error.add_note(f"raised by {role} ({describe(fn)})")
        note_captured_tracers(error, fn, role, _INSTEAD[role].format)
        if _needs_scalar(error):
            error.add_note(
                f"jaxspec: {role} gets whole arrays, and of a scalar of model_fn one entry for each shard, on one "
                "shard too. Write step[0] where all are the same, as the global step, and loss.mean() where they are "
                "not."
            )
        raise


def call_metric_fn(eval_metrics: HostFunction) -> dict[str, object]:
    """The metric values by name that metric_fn returns; {} for None."""
    metrics = call_host_function("metric_fn", eval_metrics)
    if metrics is not None and not isinstance(metrics, Mapping):
        raise TypeError(
            f"metric_fn must return a dict from names to metric values, given: {metrics!r}. Write "
            "return {'accuracy': jaxspec.metrics.accuracy(labels, predictions)}."
        )
    return dict(metrics or {})


def _needs_scalar(error: BaseException) -> bool:
    """Whether NumPy says that an array was used where a number is needed: in int(), float(), an `if` or a format."""
    phrases = (
        "arrays can be converted to Python scalars",
        "only integer scalar arrays can be converted",
        "truth value of an array",
        "unsupported format string passed to numpy.ndarray",
    )
    return isinstance(error, TypeError | ValueError) and any(phrase in str(error) for phrase in phrases)


def to_host(tree: PyTree) -> PyTree:
    """The tree with NumPy arrays as leaves."""
    if all(isinstance(leaf, np.ndarray | np.generic) for leaf in jax.tree.leaves(tree)):
        return tree  # as at every step of a run, whose outputs were fetched together
    return jax.tree.map(np.asarray, jax.device_get(tree))


class HostCallHook(SessionRunHook):
    """The host_call of one spec as a hook, which `as_estimator_spec` appends: `after_run` calls it on the spec's
    tensors."""

    def __init__(self, host_call: HostFunction) -> None:
        self._host_call = host_call

    def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        call_host_function("host_call", self._host_call)
