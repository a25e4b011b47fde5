"""Finding traced arrays that a host function has captured.

A function that runs on the host after the device has finished must get its arrays as arguments: those it
captured while model_fn was traced do not exist any more. JAX would say UnexpectedTracerError, and only when
the function runs; here the captured name is found while model_fn is still on the stack.
"""

import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax

_MAX_DEPTH = 6


def captured_tracers(obj: Any) -> Iterator[tuple[str, Any]]:
    """Yields (name of the variable that holds it, tracer) for each traced array that `obj` holds on to.

    Looks into closures, default arguments, partials, bound methods, containers and attributes.
    """
    yield from _search(obj, "", set(), 0)


def _search(obj: Any, name: str, seen: set[int], depth: int) -> Iterator[tuple[str, Any]]:
    if isinstance(obj, jax.core.Tracer):
        yield name, obj
        return
    if depth > _MAX_DEPTH or id(obj) in seen:
        return
    seen.add(id(obj))
    for child_name, child in _children(obj):
        yield from _search(child, child_name or name, seen, depth + 1)


def _children(obj: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(obj, functools.partial):
        yield "", obj.func
        for argument in obj.args:
            yield "", argument
        yield from obj.keywords.items()
    elif isinstance(obj, types.FunctionType):
        for name, cell in zip(obj.__code__.co_freevars, obj.__closure__ or (), strict=True):
            try:
                yield name, cell.cell_contents
            except ValueError:  # a variable that is assigned later
                continue
        for default in obj.__defaults__ or ():
            yield "", default
        yield from (obj.__kwdefaults__ or {}).items()
    elif isinstance(obj, types.MethodType):
        yield "", obj.__func__
        yield "", obj.__self__
    elif isinstance(obj, dict):
        for key, value in obj.items():
            yield str(key), value
    elif isinstance(obj, list | tuple | set | frozenset):
        for value in obj:
            yield "", value
    elif not isinstance(obj, type | types.ModuleType | str | bytes | int | float | jax.Array):
        try:
            attributes = vars(obj)
        except TypeError:
            return
        yield from dict(attributes).items()


def refuse_captured_tracers(fn: Callable[..., Any] | Any, role: str, mend: Callable[[str], str]) -> None:
    """Raises ValueError if `fn` holds traced arrays; `mend(name)` says what to write instead."""
    for name, tracer in captured_tracers(fn):
        shown = f"`{name}`" if name else "an array"
        raise ValueError(
            f"{role} uses {shown}, an array of model_fn ({tracer.aval.str_short()}), but it runs on the host "
            f"after the device has finished; {mend(name or 'x')}"
        )
