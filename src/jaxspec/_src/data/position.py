"""The position of an input as text, which a checkpoint holds."""

import base64
import collections
import json
import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np

from jaxspec._src.base.types import PyTree

PositionState: TypeAlias = PyTree
"""What `get_state` or `state_dict` returns: dicts, lists, tuples, sets, numbers, strings, bytes, NumPy arrays and torch
tensors, in any nesting."""
Json: TypeAlias = PyTree
"""Dicts, lists, strings, numbers, booleans and None."""


def encode_position(
    state: PositionState, identity: Mapping[str, object] | None = None, *, returned_by: str = "get_state"
) -> str:
    """The position that an input reports, as text that `decode_position` turns into an equal value again.

    Args:
      state: dicts (with any keys), lists, tuples, sets, numbers, strings, bytes, NumPy arrays and scalars, tensors of
        torch on the CPU, in any nesting.
      identity: of the input, as `input_identity` gives it; None: unknown.
      returned_by: the name of the input's method, for the message.

    Raises:
      TypeError: for a value of another type; names the type, and where it is in the state.
    """
    try:
        text = json.dumps(_encode(state, "state"))
    except TypeError as error:
        raise TypeError(
            f"the input's {returned_by} returned a {error}; it should return dicts, lists, tuples, sets, numbers, "
            "strings, bytes or arrays of them: convert it there, and back in the method that sets it."
        ) from None
    return text if identity is None else f'{{"__input__": {json.dumps(identity)}, "__state__": {text}}}'


def decode_position(text: str) -> PositionState:
    """The value for `set_state` or `load_state_dict`: the inverse of `encode_position`."""
    return _decode(_identity_and_state(text)[1])


def position_identity(text: str) -> Mapping[str, object] | None:
    """The identity of the input that the position came from; None if it was not recorded."""
    return _identity_and_state(text)[0]


def _identity_and_state(text: str) -> tuple[Mapping[str, object] | None, Json]:
    value = json.loads(text)
    identified = isinstance(value, dict) and set(value) == {"__input__", "__state__"}
    return (value["__input__"], value["__state__"]) if identified else (None, value)


# A value of a type that JSON lacks becomes an object with one key, which begins with two underscores.


def _encode(value: PositionState, path: str) -> Json:
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind in (list, tuple, set, frozenset):
        items = [_encode(item, f"{path}[{i}]") for i, item in enumerate(value)]
        return items if kind is list else {f"__{kind.__name__}__": items}
    if kind in (dict, collections.OrderedDict):
        if kind is dict and all(type(key) is str and not key.startswith("__") for key in value):
            return {key: _encode(item, f"{path}[{key!r}]") for key, item in value.items()}
        pairs = [
            [_encode(key, f"{path}: key {key!r}"), _encode(item, f"{path}[{key!r}]")] for key, item in value.items()
        ]
        return {f"__{kind.__name__}__": pairs}
    if kind is bytes:
        return {"__bytes__": base64.b64encode(value).decode()}
    if (kind is np.ndarray or isinstance(value, np.generic)) and value.dtype.kind in "biufcSUmM":
        data = base64.b64encode(value.tobytes()).decode()
        return {"__array__" if kind is np.ndarray else "__scalar__": [value.dtype.str, list(value.shape), data]}
    if (kind.__module__, kind.__name__) == ("torch", "Tensor"):
        return {"__tensor__": _encode(value.numpy(), path)}
    shown = f"{kind.__name__} of dtype {value.dtype}" if isinstance(value, np.ndarray) else kind.__name__
    raise TypeError(f"{shown}, which a checkpoint cannot keep, at {path}")


def _decode(value: Json) -> PositionState:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    tag = next(iter(value)) if len(value) == 1 else None
    if tag in _DECODERS:
        return _DECODERS[tag](value[tag])
    return {key: _decode(item) for key, item in value.items()}


def _array(encoded: Json) -> np.ndarray:
    dtype, shape, data = encoded
    # A copy: an array over a buffer is read-only.
    return np.frombuffer(base64.b64decode(data), np.dtype(dtype), math.prod(shape)).reshape(shape).copy()


def _tensor(encoded: Json) -> object:
    import torch  # whose tensor it was

    return torch.from_numpy(_decode(encoded))


_DECODERS: dict[str, Callable[[Json], PositionState]] = {
    "__bytes__": base64.b64decode,
    "__tuple__": lambda items: tuple(map(_decode, items)),
    "__set__": lambda items: set(map(_decode, items)),
    "__frozenset__": lambda items: frozenset(map(_decode, items)),
    "__dict__": lambda pairs: {_decode(key): _decode(item) for key, item in pairs},
    "__OrderedDict__": lambda pairs: collections.OrderedDict((_decode(key), _decode(item)) for key, item in pairs),
    "__array__": _array,
    "__tensor__": _tensor,
    "__scalar__": lambda encoded: _array(encoded)[()],
}
