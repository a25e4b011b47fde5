"""Decorators for the two classes of specs: they check when one is constructed, and register a pytree."""

import functools
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple, TypeVar

import jax

from jaxspec._src.base.removed_arguments import handle_removed_arguments
from jaxspec._src.base.types import AnyFunction

# JAX rebuilds a pytree with tracers, None or object() as leaves: by `_make`, which checks nothing.
_ARRAY_FIELDS = ("predictions", "loss", "train_op", "export_outputs", "eval_metric_ops")
_HOST_FUNCTION_FIELDS = ("eval_metrics", "host_call")


S = TypeVar("S", bound=NamedTuple)


def checked(*, fixed: Collection[str] = ()) -> Callable[[type[S]], type[S]]:
    """Makes the constructor and `_replace` of a namedtuple class return what `_checked` returns. A decorator.

    The class inherits its signature from its fields, so that each field is written once.

    Args:
      fixed: the fields that `_replace` cannot change.
    """

    def decorate(cls: type[S]) -> type[S]:
        new: AnyFunction = cls.__new__

        @functools.wraps(new)
        def checked_new(cls: type[S], *args: object, **kwargs: object) -> object:
            return new(cls, *args, **kwargs)._checked()

        def _replace(self: S, **kwargs: object) -> object:
            """A checked copy with some fields changed."""
            before = self._asdict()
            for name in fixed:
                if name in kwargs and kwargs[name] != before[name]:
                    raise ValueError(f"{name} of {cls.__name__} cannot be changed.")
            construct: AnyFunction = type(self)
            return construct(**{**before, **kwargs})

        checked_new.__qualname__ = f"{cls.__name__}.__new__"
        methods = {"__new__": staticmethod(handle_removed_arguments(checked_new)), "_replace": _replace}
        for name, method in methods.items():
            setattr(cls, name, method)
        return cls

    return decorate


def register_pytree(cls: type[S]) -> type[S]:
    """Makes a spec class a pytree: its arrays are leaves, its functions are static. A decorator."""
    jax.tree_util.register_pytree_with_keys(cls, _flatten, functools.partial(_unflatten, cls))
    return cls


def _flatten(spec: NamedTuple) -> tuple[list[tuple[jax.tree_util.GetAttrKey, object]], tuple[object, ...]]:
    children: list[tuple[jax.tree_util.GetAttrKey, object]] = []
    static: list[object] = []
    for name, value in spec._asdict().items():
        if name in _HOST_FUNCTION_FIELDS:
            fn, value = (None, None) if value is None else value
            static.append(fn)
        elif name not in _ARRAY_FIELDS:
            static.append(value)
            continue
        children.append((jax.tree_util.GetAttrKey(name), value))
    return children, tuple(static)


def _unflatten(cls: type[S], static: Iterable[object], children: Iterable[object]) -> S:
    static, children = iter(static), iter(children)
    values: list[object] = []
    for name in cls._fields:
        if name in _HOST_FUNCTION_FIELDS:
            fn, tensors = next(static), next(children)
            values.append(None if fn is None else (fn, tensors))
        else:
            values.append(next(children if name in _ARRAY_FIELDS else static))
    return cls._make(values)
