"""The specs as pytrees: arrays are leaves, functions are static."""

import functools
from collections.abc import Iterable
from typing import Any, TypeVar

import jax

Spec = TypeVar("Spec")

# Specs are rebuilt by `_make`, which checks nothing,
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


def register(cls: type[Spec]) -> type[Spec]:
    """Makes a namedtuple class of specs a pytree. A decorator."""
    jax.tree_util.register_pytree_with_keys(cls, _flatten, functools.partial(_unflatten, cls))
    return cls
