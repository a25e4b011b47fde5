"""The user's hyper-parameters, `params`: copies of them, and reading them by key or attribute."""

import argparse
import contextlib
import copy
import dataclasses
import operator
import types
from collections.abc import Mapping
from typing import Any

from jaxspec._src.base.types import HyperParameters


def copy_params(params: HyperParameters) -> HyperParameters:
    """A copy of `params` of the same type, so that nobody changes what others read.

    What cannot be copied (a lock, a tokenizer) is passed as it is; the container that holds it is copied.
    """
    return _copied(params, {}, outermost=True)


def with_values(params: HyperParameters, **values: object) -> HyperParameters:
    """A copy of `params` (None: a dict) with some values added: as keys if it has keys, else as attributes.

    Raises:
      TypeError: if neither can be added.
    """
    if hasattr(type(params), "as_configdict"):  # a FrozenConfigDict takes no more keys
        params = params.as_configdict()
    made: HyperParameters = {} if params is None else copy_params(params)
    has_keys = _has_keys(made)
    add = operator.setitem if has_keys else _set_attribute
    try:
        if made is params:
            raise TypeError("it cannot be copied")
        with made.unlocked() if has_keys and hasattr(type(made), "unlocked") else contextlib.nullcontext():
            for name, value in values.items():
                add(made, name, value)
    except Exception as error:
        if has_keys:  # a mapping that cannot be copied, or takes no further keys, or not these values
            return _AttributeDict({**{key: made[key] for key in made}, **values})
        kind = type(params).__name__
        what = f"an object of {kind}" if hasattr(params, "__dict__") else f"{kind} {params!r}"
        raise TypeError(
            f"params must be a dict, or an object whose copy takes the attributes {sorted(values)}, "
            f"given {what} ({error}). "
            'Write params={"config": ...}, and params["config"] in model_fn; or dataclasses.asdict(...), vars(...).'
        ) from None
    return made


class _AttributeDict(dict[str, object]):
    """Replaces a mapping of another type, whose keys may be read as attributes."""

    def __getattr__(self, name: str) -> object:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def value_of(params: HyperParameters, name: str) -> Any:
    """The value of this key or attribute, or None."""
    try:
        return params[name] if _has_keys(params) else getattr(params, name)
    except Exception:  # a __getattr__ may raise anything
        return None


def holds(params: HyperParameters, name: str) -> bool:
    """Whether `params` has this key or attribute."""
    try:
        return name in params if _has_keys(params) else hasattr(params, name)
    except Exception:
        return False


def _has_keys(params: object) -> bool:
    kind = type(params)
    return isinstance(params, Mapping) or (hasattr(kind, "keys") and hasattr(kind, "__getitem__"))


def _set_attribute(obj: object, name: str, value: object) -> None:
    try:
        setattr(obj, name, value)
    except Exception:  # a frozen dataclass, a class that checks its attributes
        object.__setattr__(obj, name, value)


def _copied(value: HyperParameters, copies: dict[int, object], *, outermost: bool = False) -> object:
    try:
        return copy.deepcopy(value)
    except Exception:  # a class of the user may raise anything
        pass
    if id(value) not in copies:
        try:
            _copy_container(value, copies, outermost)
        except Exception:
            copies[id(value)] = value
    return copies.setdefault(id(value), value)


def _copy_container(value: HyperParameters, copies: dict[int, object], outermost: bool) -> None:
    """Puts a copy of a container among `copies` before it is filled: it may hold itself."""
    if type(value) is tuple:
        copies[id(value)] = tuple(_copied(element, copies) for element in value)
    elif isinstance(value, list):
        copies[id(value)] = made = _shallow_copy(value)
        made[:] = [_copied(element, copies) for element in value]
    elif _has_keys(value):
        copies[id(value)] = made = _shallow_copy(value)
        for key in value:
            made[key] = _copied(value[key], copies)
    elif not isinstance(value, type) and (outermost or _is_record(value)):
        copies[id(value)] = made = _shallow_copy(value)
        for name, attribute in vars(value).items():
            _set_attribute(made, name, _copied(attribute, copies))


def _is_record(value: object) -> bool:
    return dataclasses.is_dataclass(value) or isinstance(value, types.SimpleNamespace | argparse.Namespace)


def _shallow_copy(value: HyperParameters) -> HyperParameters:
    try:
        return copy.copy(value)
    except Exception:  # such as a __getattr__ that reads attributes which the copy lacks
        if isinstance(value, Mapping):
            return dict(value)
        made = object.__new__(type(value))
        vars(made).update(vars(value))
        return made
