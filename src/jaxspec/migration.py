"""Answers to TensorFlow's arguments that are gone, and to those that go by keyword now."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

_F = TypeVar("_F", bound=Callable[..., Any])


def answers(gone: Mapping[str, str], *, positional: str = "") -> Callable[[_F], _F]:
    """A decorator: the TypeError of a call with arguments that a function does not take says what to write instead.

    Args:
      gone: what to write, by the name of an argument that is gone.
      positional: what to write where too many arguments are given by position.
    """

    def decorate(fn: _F) -> _F:
        signature = inspect.signature(fn)

        @functools.wraps(fn)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                answer = " ".join(f"{name}: {gone[name]}" for name in kwargs if name in gone)
                if not answer and "positional" in str(error) and "missing" not in str(error):
                    answer = positional
                name = fn.__qualname__.removesuffix(".__init__").removesuffix(".__new__")
                raise TypeError(f"{name}: {error}. {answer}".rstrip()) from None
            return fn(*args, **kwargs)

        return call  # type: ignore[return-value]

    return decorate
