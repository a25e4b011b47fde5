"""Which arguments a user's function takes, and calling it with only those."""

import functools
import inspect
from collections.abc import Callable, Mapping

from jaxspec._src.base.types import AnyFunction, T


def argument_names(fn: AnyFunction) -> tuple[list[str], bool]:
    """The names that `fn` takes by keyword, and whether it also takes any other name (`**kwargs`).

    The names that a `functools.partial` has bound, and the `self` of a method, are left out.
    """
    parameters = open_parameters(fn)
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = [p.name for p in parameters if p.kind in kinds]
    return names, any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def open_parameters(fn: AnyFunction) -> list[inspect.Parameter]:
    """The parameters of `fn` that no `functools.partial` has bound by name."""
    try:
        parameters = inspect.signature(fn).parameters
    except ValueError:  # some callables written in C have no signature
        return []
    bound: set[str] = set()
    inner = fn
    while isinstance(inner, functools.partial):
        bound |= set(inner.keywords)
        inner = inner.func
    return [p for name, p in parameters.items() if name not in bound]


def describe(fn: object) -> str:
    """A short name of a callable for messages: its qualified name, or its repr."""
    return str(getattr(fn, "__qualname__", None) or repr(fn))


def call_by_name(fn: Callable[..., T], available: Mapping[str, object]) -> T:
    """Calls `fn` with those of the `available` arguments that it names."""
    names, takes_any = argument_names(fn)
    return fn(**{name: value for name, value in available.items() if takes_any or name in names})
