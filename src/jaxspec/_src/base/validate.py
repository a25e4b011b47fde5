"""Checks of what the user gave: numbers, functions, methods."""

import inspect
import operator
import reprlib
from collections.abc import Collection
from typing import TypeGuard

import numpy as np

from jaxspec._src.base.callables import argument_names, describe, open_parameters
from jaxspec._src.base.types import AnyFunction


def is_integer(value: object) -> TypeGuard[int]:
    """Whether `value` is an integer of Python or NumPy, and no bool."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_number(
    name: str,
    value: object,
    *,
    whole: bool = False,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    required: bool = False,
    instead: str = "",
) -> None:
    """Raises TypeError unless `value` is a number, ValueError unless it lies within the bounds.

    Args:
      whole: whether it must be an integer.
      above: the number must be larger than this.
      required: whether None, too, is refused.
      instead: a sentence for the message that says what to write.
    """
    if value is None and not required:
        return
    kinds = int | np.integer if whole else int | float | np.number
    if not isinstance(value, kinds) or isinstance(value, bool):
        kind = "a whole number" if whole else "a number"
        raise TypeError(f"{name} should be {kind}, got {value!r} ({type(value).__name__}). {instead}".rstrip(" ."))
    bounds = ((">=", minimum, operator.ge), (">", above, operator.gt), ("<=", maximum, operator.le))
    for sign, bound, holds in bounds:
        if bound is not None and not holds(value, bound):
            raise ValueError(f"{name} should be {sign} {bound}, got {value}. {instead}".rstrip(" ."))


def check_callable(name: str, fn: object, instead: str = "") -> None:
    """Raises TypeError unless `fn` can be called. `instead` is a sentence that says what to write."""
    if not callable(fn):
        raise TypeError(f"{name} must be callable, given: {reprlib.repr(fn)}. {instead}".rstrip())


def check_arguments(
    fn: AnyFunction, *, role: str, allowed: Collection[str], required: Collection[str] = (), instead: str = ""
) -> None:
    """Raises ValueError unless `fn` can be called by keyword with `allowed` arguments, and names those in `required`.

    An argument that is not allowed keeps its default; one without a default is refused.

    Args:
      role: what messages call the function.
      instead: for the TypeError of what is not callable.
    """
    check_callable(role, fn, instead)
    names, takes_any = argument_names(fn)
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p for p in open_parameters(fn) if p.default is inspect.Parameter.empty and p.kind not in variadic]
    unexpected = [p.name for p in needed if p.name not in allowed or p.kind is inspect.Parameter.POSITIONAL_ONLY]
    if unexpected:
        or_params = ", or pass them in `params`" if "params" in allowed else ""
        raise ValueError(
            f"{role} ({describe(fn)}) has following not expected args: {unexpected}. It is called by keyword and may "
            f"name any of {sorted(allowed)}; give others a default, bind them first, as in functools.partial({role}, "
            f"{unexpected[0]}=...){or_params}."
        )
    missing = [name for name in required if name not in names and not takes_any]
    if missing:
        raise ValueError(
            f"{role} ({describe(fn)}) must include {missing[0]} argument. It names {names}; add `{missing[0]}`."
        )


def check_methods(value: object, base: type) -> None:
    """Raises TypeError unless each method of `base` that the class of `value` overrides takes its arguments by
    position."""
    for name, declared in vars(base).items():
        if not inspect.isfunction(declared) or (method := getattr(type(value), name)) is declared:
            continue
        arguments = list(inspect.signature(declared).parameters)
        try:
            inspect.signature(getattr(value, name)).bind(*arguments[1:])
        except TypeError as error:
            raise TypeError(
                f"{type(value).__name__}.{name} has a wrong signature, {name}{inspect.signature(method)}: {error}. It "
                f"is called with {len(arguments) - 1} arguments: write def {name}({', '.join(arguments)})."
            ) from None
        except ValueError:  # some callables written in C have no signature
            pass
