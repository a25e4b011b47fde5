"""Finds tracers in the closures of host functions, and refuses them while model_fn is traced.

A function that runs on the host after the device has finished must get its arrays as arguments: those that it
captured while model_fn was traced no longer exist then. JAX would raise UnexpectedTracerError, and only when
the function runs; here the captured name is found while model_fn is still on the stack.
"""

import collections
import gc
import itertools
import types
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np

from jaxspec._src.base.types import AnyFunction, PyTree

_MOST_OBJECTS = 600
"""Looked at for each function, in well under a millisecond. What lies deeper is found when the function runs."""
_TURN = 16
"""Elements of one container that are looked at before those of the next: a vocabulary in one hides nothing in
another."""

_PLAIN = (str, bytes, int, float, complex, type(None), type, types.CodeType, types.ModuleType, jax.Array)
_CONTAINERS = (list, tuple, set, frozenset, collections.deque)

_TRACER_ERRORS = (
    jax.errors.UnexpectedTracerError,
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


def refuse_captured_tracers(fn: object, role: str, instead: Callable[[str], str]) -> None:
    """Raises ValueError if `fn` holds a traced array; `instead(name)` says what to write for it."""
    for name, tracer in captured_tracers(fn):
        raise ValueError(_captured(role, name, tracer, instead))


def note_captured_tracers(error: BaseException, fn: object, role: str, instead: Callable[[str], str]) -> None:
    """Adds to an error of `fn` what to write instead, if the error comes from a traced array that `fn` holds."""
    if not isinstance(error, _TRACER_ERRORS):
        return
    for name, tracer in captured_tracers(fn, most_objects=None):
        error.add_note(_captured(role, name, tracer, instead))
        return
    if isinstance(error, jax.errors.UnexpectedTracerError):
        error.add_note(f"{role} runs on the host and may use no array of model_fn but its arguments; {instead('x')}")


def _captured(role: str, name: str, tracer: PyTree, instead: Callable[[str], str]) -> str:
    shown = f"`{name}`" if name else "an array"
    return (
        f"{role} uses {shown}, an array of model_fn ({tracer.aval.str_short()}), but it runs on the host "
        f"after the device has finished; {instead(name or 'x')}"
    )


def captured_tracers(obj: object, most_objects: int | None = _MOST_OBJECTS) -> Iterator[tuple[str, PyTree]]:
    """Yields (name of the variable that holds it, tracer) for each traced array that `obj` holds.

    Looks into closures, default arguments, partials, bound methods, containers and attributes, those nearest to `obj`
    first. Global variables, modules and classes are left out.

    Args:
      most_objects: the search ends after so many objects; None: it looks at everything.
    """
    seen: set[int] = set()
    # What has been looked at stays alive: the id of a discarded object might be that of another one.
    kept: list[object] = []
    is_plain: dict[type, bool] = {}
    waiting = collections.deque([("", iter([("", obj)]))])
    left = itertools.count() if most_objects is None else iter(range(most_objects))
    while waiting:
        outer, children = waiting.popleft()
        try:
            turn = list(itertools.islice(children, _TURN))
        except RuntimeError:  # another thread has changed the container meanwhile
            continue
        for own, child in turn:
            if next(left, None) is None:
                return
            kind = type(child)
            if kind not in is_plain:
                is_plain[kind] = issubclass(kind, _PLAIN) and not issubclass(kind, jax.core.Tracer)
            if is_plain[kind] or id(child) in seen:
                continue
            seen.add(id(child))
            kept.append(child)
            if isinstance(child, jax.core.Tracer):
                yield own or outer, child
            else:
                waiting.append((own or outer, _children(child)))
        if len(turn) == _TURN:
            waiting.append((outer, children))


def _children(obj: object) -> Iterator[tuple[str, object]]:
    """Yields what an object refers to, with the name that it has there, or "". No code of the object's class runs."""
    if isinstance(obj, types.FunctionType):
        for name, cell in zip(obj.__code__.co_freevars, obj.__closure__ or (), strict=True):
            # A cell without contents is a variable that is assigned later.
            yield from ((name, contents) for contents in gc.get_referents(cell))
        yield from _unnamed(obj.__defaults__ or ())
        yield from (obj.__kwdefaults__ or {}).items()
        yield from obj.__dict__.items()  # functools.wraps keeps the wrapped function there
        return
    attributes = object.__getattribute__(obj, "__dict__") if type(obj).__dictoffset__ else {}
    yield from attributes.items()
    if isinstance(obj, dict):
        yield from ((key if isinstance(key, str) else "", value) for key, value in dict.items(obj))
        return
    for kind in _CONTAINERS:
        if isinstance(obj, kind):
            elements: AnyFunction = kind.__iter__
            yield from _unnamed(elements(obj))
            return
    if isinstance(obj, np.ndarray):
        yield from _unnamed(obj.flat if obj.dtype == object else ())
    else:  # slots, partials, methods, iterators, generators
        yield from _unnamed(child for child in gc.get_referents(obj) if child is not attributes)


def _unnamed(values: Iterable[object]) -> Iterator[tuple[str, object]]:
    return zip(itertools.repeat(""), values)
