"""The position of an input as text: a snapshot that a checkpoint can hold."""

import base64
import json
from typing import Any

import numpy as np


def encode_position(state: Any) -> str:
    """What an iterator's `get_state` returned, as JSON: any nesting of dicts, lists, numbers, texts and bytes.

    Raises:
      TypeError: naming the type that cannot be kept.
    """
    return json.dumps(state, default=_encode)


def decode_position(text: str) -> Any:
    """What `set_state` takes: the inverse of `encode_position`."""
    return json.loads(text, object_hook=_decode)


def _encode(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"__bytes__": base64.b64encode(value).decode()}
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(
        f"the input's get_state returned a {type(value).__name__}, which a checkpoint cannot keep; it should return "
        "dicts, lists, numbers, texts or bytes."
    )


def _decode(value: dict[str, Any]) -> Any:
    return base64.b64decode(value["__bytes__"]) if set(value) == {"__bytes__"} else value
