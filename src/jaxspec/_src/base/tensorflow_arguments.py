"""Answers to TensorFlow's arguments that are gone, and to those that go by keyword now."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

_F = TypeVar("_F", bound=Callable[..., Any])


def answers(gone: Mapping[str, str], *, write: str = "") -> Callable[[_F], _F]:
    """A decorator: the TypeError of a call with arguments that a function does not take says what to write instead.

    Args:
      gone: what to write, by the name of an argument that is gone.
      write: the call as it should be.
    """

    def decorate(fn: _F) -> _F:
        signature = inspect.signature(fn)

        @functools.wraps(fn)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                name = fn.__qualname__.removesuffix(".__init__").removesuffix(".__new__")
                said = [f"{name}: {error}.", *(f"{key}: {gone[key]}" for key in kwargs if key in gone), write]
                raise TypeError(" ".join(said).rstrip()) from None
            return fn(*args, **kwargs)

        return call  # type: ignore[return-value]

    return decorate
