"""Finding traced arrays that a host function has captured.

A function that runs on the host after the device has finished must get its arrays as arguments: those it
captured while model_fn was traced do not exist any more. JAX would say UnexpectedTracerError, and only when
the function runs; here the captured name is found while model_fn is still on the stack.
"""

import collections
import contextlib
import functools
import gc
import itertools
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

_MOST_OBJECTS = 600
"""Looked at for each function, well under a millisecond. A function's own variables come first, and what they hold takes
turns, so that a vocabulary in one of them hides nothing in another. What lies deeper is found when the function runs."""
_TURN = 16
"""Elements of one container that are looked at before those of the next."""

_PLAIN = (str, bytes, int, float, complex, type(None), type, types.CodeType, types.ModuleType, jax.Array)

_TRACER_ERRORS = (
    jax.errors.UnexpectedTracerError,
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


def captured_tracers(obj: Any, most_objects: int | None = _MOST_OBJECTS) -> Iterator[tuple[str, Any]]:
    """Yields (name of the variable that holds it, tracer) for each traced array that `obj` holds on to.

    Looks into closures, default arguments, partials, bound methods, containers and attributes, those nearest to `obj`
    first. Global variables, modules and classes are left out.

    Args:
      most_objects: after so many objects the search ends; None: it looks at everything.
    """
    seen: set[int] = set()
    # What has been looked at stays alive: the number of a dropped object might be given to another one.
    kept: list[Any] = []
    openers: dict[type, _Opener | None] = {}
    waiting = collections.deque([("", iter([("", obj)]))])
    left = itertools.count() if most_objects is None else iter(range(most_objects))
    while waiting:
        outer, children = waiting.popleft()
        for turn, (own, child) in enumerate(children, 1):
            if next(left, None) is None:
                return
            kind = type(child)
            if kind not in openers:
                openers[kind] = _opener(kind)
            opener = openers[kind]
            if opener is not None and id(child) not in seen:
                seen.add(id(child))
                kept.append(child)
                if opener is _is_tracer:
                    yield own or outer, child
                else:
                    waiting.append((own or outer, _opened(opener, child)))
            if turn == _TURN:
                waiting.append((outer, children))
                break


_Opener = Callable[[Any], Iterable[tuple[str, Any]]]
"""Gives what an object refers to, by the name that it has there; "" where it has none."""


def _opened(opener: _Opener, obj: Any) -> Iterator[tuple[str, Any]]:
    try:
        yield from opener(obj)
    except RuntimeError:  # another thread has changed it meanwhile
        return


def _opener(kind: type) -> _Opener | None:
    """How objects of this type are opened; None for those that hold nothing."""
    if issubclass(kind, jax.core.Tracer):
        return _is_tracer
    if issubclass(kind, _PLAIN):
        return None
    if issubclass(kind, types.FunctionType):
        return _in_function
    if issubclass(kind, functools.partial):
        return lambda obj: itertools.chain([("", obj.func)], _unnamed(obj.args), obj.keywords.items())
    if issubclass(kind, np.ndarray):
        return lambda obj: _unnamed(obj.flat) if obj.dtype == object else ()
    slots = _slots(kind)
    if issubclass(kind, dict):
        return lambda obj: itertools.chain(_in_dict(obj), _attributes(obj, slots))
    for container in (list, tuple, set, frozenset, collections.deque):
        if issubclass(kind, container):
            elements: Any = container.__iter__
            return lambda obj: itertools.chain(_unnamed(elements(obj)), _attributes(obj, slots))
    if slots or kind.__dictoffset__:
        return lambda obj: _attributes(obj, slots)
    return lambda obj: _unnamed(gc.get_referents(obj))  # made in C: methods, iterators, generators


def _is_tracer(obj: Any) -> Iterable[tuple[str, Any]]:
    return ()


def _in_function(fn: Any) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        # A cell without contents is a variable that is assigned later.
        yield from ((name, contents) for contents in gc.get_referents(cell))
    yield from _unnamed(fn.__defaults__ or ())
    yield from (fn.__kwdefaults__ or {}).items()
    yield from fn.__dict__.items()  # functools.wraps keeps the wrapped function there


def _unnamed(values: Iterable[Any]) -> Iterable[tuple[str, Any]]:
    return zip(itertools.repeat(""), values)


def _in_dict(obj: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in dict.items(obj):
        yield key if isinstance(key, str) else "", value


def _slots(kind: type) -> list[Any]:
    """The descriptors of the slots of a class and its bases."""
    members = [member for cls in kind.__mro__ if "__slots__" in vars(cls) for member in vars(cls).values()]
    return [member for member in members if isinstance(member, types.MemberDescriptorType)]


def _attributes(obj: Any, slots: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """Attributes as they are stored: no code of the class of `obj` runs."""
    with contextlib.suppress(AttributeError):
        yield from object.__getattribute__(obj, "__dict__").items()
    for slot in slots:
        try:
            yield slot.__name__, slot.__get__(obj)
        except AttributeError:  # nothing is stored there
            continue


def refuse_captured_tracers(fn: Callable[..., Any] | Any, role: str, mend: Callable[[str], str]) -> None:
    """Raises ValueError if `fn` holds traced arrays; `mend(name)` says what to write instead."""
    for name, tracer in captured_tracers(fn):
        raise ValueError(_captured(role, name, tracer, mend))


def _captured(role: str, name: str, tracer: Any, mend: Callable[[str], str]) -> str:
    shown = f"`{name}`" if name else "an array"
    return (
        f"{role} uses {shown}, an array of model_fn ({tracer.aval.str_short()}), but it runs on the host "
        f"after the device has finished; {mend(name or 'x')}"
    )


def note_captured_tracers(error: BaseException, fn: Any, role: str, mend: Callable[[str], str]) -> None:
    """Adds to an error of `fn`, where it comes of a traced array that `fn` holds, what to write instead."""
    if not isinstance(error, _TRACER_ERRORS):
        return
    for name, tracer in captured_tracers(fn, most_objects=None):
        error.add_note(_captured(role, name, tracer, mend))
        return
    if isinstance(error, jax.errors.UnexpectedTracerError):
        error.add_note(f"{role} runs on the host and may use no array of model_fn but its arguments; {mend('x')}")
