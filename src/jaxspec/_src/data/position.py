"""The position of an input as text that a checkpoint can hold, and the input that it belongs to."""

import base64
import collections
import functools
import itertools
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import crc32c
import numpy as np

from jaxspec._src.base.arrays import named_leaves

_WHOLE_BYTES = 2**20
"""An array of so many bytes or fewer is read whole for its fingerprint."""
_SAMPLED_ROWS = 1024
_ITEMS = 100
"""So many items of a container are looked at: it may be a vocabulary."""


def encode_position(state: Any, identity: Mapping[str, Any] | None = None) -> str:
    """What an iterator's `get_state` returned, as text that `decode_position` turns into an equal value again.

    Dicts (with any keys), lists, tuples, sets, numbers, strings, bytes, NumPy arrays and scalars, in any nesting.

    Args:
      state: what to keep.
      identity: of the input, as `input_identity` gives it; None: unknown.

    Raises:
      TypeError: naming the type that cannot be kept, and where it is in the state.
    """
    text = json.dumps(_encode(state, "state"))
    return text if identity is None else f'{{"__input__": {json.dumps(identity)}, "__state__": {text}}}'


def decode_position(text: str) -> Any:
    """What `set_state` takes: the inverse of `encode_position`."""
    value = json.loads(text)
    return _decode(value["__state__"] if _is_identified(value) else value)


def position_identity(text: str) -> dict[str, Any] | None:
    """The identity of the input that the position is of; None: it was not recorded."""
    value = json.loads(text)
    return value["__input__"] if _is_identified(value) else None


def input_identity(iterator: Any, input_fn: Callable[..., Any]) -> dict[str, Any]:
    """By what an input is recognised when it is made again.

    An iterator with a method `fingerprint` says so itself. Of others it is their type, the name of input_fn and a
    checksum of the arrays that are attributes of the iterator.
    """
    kind = f"{type(iterator).__module__}.{type(iterator).__qualname__}"
    fingerprint = getattr(iterator, "fingerprint", None)
    if callable(fingerprint):
        # Through JSON, as it will be compared with what comes out of a checkpoint.
        return {"iterator": kind, "fingerprint": json.loads(encode_position(fingerprint()))}
    while isinstance(input_fn, functools.partial):
        input_fn = input_fn.func
    name = getattr(input_fn, "__qualname__", None) or type(input_fn).__qualname__
    return {"iterator": kind, "input_fn": name, "arrays": arrays_fingerprint(_held_arrays(iterator))}


def _held_arrays(iterator: Any) -> dict[str, Any]:
    """The arrays that are attributes of an iterator, or items of a dict, list or tuple that is one."""
    held = {}
    for name, value in getattr(iterator, "__dict__", {}).items():
        items = value.items() if type(value) is dict else enumerate(value) if type(value) in (list, tuple) else ()
        for key, item in (("", value), *itertools.islice(items, _ITEMS)):
            if type(item) is np.ndarray:
                held[f"{name}[{key!r}]" if key != "" else name] = item
    return held


def arrays_fingerprint(tree: Any) -> dict[str, str]:
    """A checksum (CRC-32C), dtype and shape of each NumPy array in `tree`, by its path.

    An array of more than 1 MiB is sampled: 1,024 rows spread evenly over the whole, the first and the last among them.
    So the time does not grow with the data, and two arrays that differ in no sampled row are taken for one.
    """
    out = {}
    for name, leaf in named_leaves(tree).items():
        rows = leaf
        if leaf.nbytes > _WHOLE_BYTES:
            rows = leaf[np.linspace(0, leaf.shape[0] - 1, min(_SAMPLED_ROWS, leaf.shape[0])).astype(np.int64)]
        array = np.ascontiguousarray(rows)
        checksum = 0 if array.dtype.hasobject else crc32c.crc32c(array.tobytes())
        out[name] = f"{leaf.dtype}{list(leaf.shape)} {checksum:08x}"
    return out


def _is_identified(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"__input__", "__state__"}


# What JSON has no word for is an object with one key that begins with two underscores.


def _encode(value: Any, path: str) -> Any:
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
        data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {"__array__" if kind is np.ndarray else "__scalar__": [value.dtype.str, list(value.shape), data]}
    shown = f"{kind.__name__} of dtype {value.dtype}" if isinstance(value, np.ndarray) else kind.__name__
    raise TypeError(
        f"the input's get_state returned a {shown}, which a checkpoint cannot keep, at {path}; it should return dicts, "
        "lists, tuples, sets, numbers, strings, bytes or NumPy arrays of them: convert it there, and back in set_state."
    )


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    tag = next(iter(value)) if len(value) == 1 else None
    if tag in _DECODERS:
        return _DECODERS[tag](value[tag])
    return {key: _decode(item) for key, item in value.items()}


def _array(encoded: Any) -> np.ndarray:
    dtype, shape, data = encoded
    count = math.prod(shape)
    # A copy: what comes from a buffer cannot be written to.
    return np.frombuffer(base64.b64decode(data), np.dtype(dtype), count if count else 0).reshape(shape).copy()


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "__bytes__": base64.b64decode,
    "__tuple__": lambda items: tuple(map(_decode, items)),
    "__set__": lambda items: set(map(_decode, items)),
    "__frozenset__": lambda items: frozenset(map(_decode, items)),
    "__dict__": lambda pairs: {_decode(key): _decode(item) for key, item in pairs},
    "__OrderedDict__": lambda pairs: collections.OrderedDict((_decode(key), _decode(item)) for key, item in pairs),
    "__array__": _array,
    "__scalar__": lambda encoded: _array(encoded)[()],
}
