"""Calling the user's functions by the names of their arguments."""

import functools
import inspect
import reprlib
from collections.abc import Callable, Collection, Mapping
from typing import Any


def argument_names(fn: Callable[..., Any]) -> tuple[list[str], bool]:
    """The names that `fn` takes by keyword, and whether it takes any other one too (`**kwargs`).

    What a `functools.partial` has bound already, and the `self` of a method, are not among them.
    """
    parameters = _open_parameters(fn)
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = [p.name for p in parameters if p.kind in kinds]
    return names, any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def _open_parameters(fn: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        parameters = inspect.signature(fn).parameters
    except ValueError:  # some callables written in C do not tell
        return []
    bound: set[str] = set()
    inner = fn
    while isinstance(inner, functools.partial):
        bound |= set(inner.keywords)
        inner = inner.func
    return [p for name, p in parameters.items() if name not in bound]


def describe(fn: Any) -> str:
    """A short name of a callable for messages: its qualified name, or its repr."""
    return str(getattr(fn, "__qualname__", None) or repr(fn))


def check_arguments(
    fn: Callable[..., Any], *, role: str, allowed: Collection[str], required: Collection[str] = ()
) -> None:
    """Raises ValueError unless `fn` can be called by keyword with `allowed` arguments, and names those in `required`.

    An argument that is not allowed keeps its default; one without a default is refused.
    """
    if not callable(fn):
        mend = ""
        if role == "input_fn":
            mend = " Write a function that returns batches, such as jaxspec.inputs.numpy_input_fn(x, y)."
            if hasattr(fn, "__iter__"):
                mend = " Write a function that makes it, so that each call begins anew: input_fn=lambda: dataset, or def input_fn(params): return ..."
        raise TypeError(f"{role} must be callable, given: {reprlib.repr(fn)}.{mend}")
    names, takes_any = argument_names(fn)
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p for p in _open_parameters(fn) if p.default is inspect.Parameter.empty and p.kind not in variadic]
    unexpected = [p.name for p in needed if p.name not in allowed or p.kind is inspect.Parameter.POSITIONAL_ONLY]
    if unexpected:
        or_params = ", or pass them in `params`" if "params" in allowed else ""
        raise ValueError(
            f"{role} ({describe(fn)}) has following not expected args: {unexpected}. It is called by keyword and "
            f"may name any of {sorted(allowed)}; give others a default, bind them first, as in functools.partial({role}, "
            f"{unexpected[0]}=...){or_params}."
        )
    missing = [name for name in required if name not in names and not takes_any]
    if missing:
        raise ValueError(
            f"{role} ({describe(fn)}) must include {missing[0]} argument. It names {names}; add `{missing[0]}`."
        )


def call_by_name(fn: Callable[..., Any], available: Mapping[str, Any]) -> Any:
    """Calls `fn` with those of the `available` arguments that it names."""
    names, takes_any = argument_names(fn)
    return fn(**{name: value for name, value in available.items() if takes_any or name in names})


def check_methods(value: Any, base: type, methods: Mapping[str, Collection[str]]) -> None:
    """Raises TypeError unless every method that the class of `value` overrides takes its arguments, by position.

    Args:
      methods: the arguments that each is called with.
    """
    for name, arguments in methods.items():
        method = getattr(type(value), name)
        if method is getattr(base, name):
            continue
        try:
            inspect.signature(getattr(value, name)).bind(*arguments)
        except TypeError as error:
            takes = ", ".join(["self", *arguments])
            raise TypeError(
                f"{type(value).__name__}.{name} has a wrong signature, {name}{inspect.signature(method)}: {error}. It is called "
                f"with {len(arguments)} arguments: write def {name}({takes})."
            ) from None
        except ValueError:  # some callables written in C do not tell
            pass
