"""What a server passes to an export, and how features are made of it."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from jaxspec._src.base.arrays import is_key, named_leaves
from jaxspec._src.base.types import Array, Batch, DType, PyTree
from jaxspec._src.export.tensor_spec import TensorSpec

_IN_FRONT = (
    "An export holds no strings, and decodes no images: parse, decode and look up in the program that calls it, and "
    "pass numbers."
)


@dataclasses.dataclass(frozen=True)
class ServingInputReceiver:
    """What `serving_input_receiver_fn` returns: what callers of an export pass, and the features that come of it.

    Args:
      features: `receiver_tensors` themselves; or a pure function, which gets arrays in the structure of
        `receiver_tensors`, and returns the features. It becomes part of the export.
      receiver_tensors: a dict by name of `TensorSpec`s, as `TensorSpec((None, 28, 28), jnp.float32)`; or one of them,
        whose name is then `input`. The first dimension is None, for the batch.

    Raises:
      ValueError, TypeError: for a receiver without a batch dimension; for strings; for features that are neither.
    """

    features: PyTree | Callable[[PyTree], Batch]
    receiver_tensors: Any
    """By name; or one."""

    def __post_init__(self) -> None:
        if self.receiver_tensors is None or (isinstance(self.receiver_tensors, Mapping) and not self.receiver_tensors):
            raise ValueError(
                f"receiver_tensors must be defined, got {self.receiver_tensors!r}. Write "
                "{'x': export.TensorSpec((None, 28, 28), jnp.float32)}."
            )
        shapes = {name: _checked(name, shape) for name, shape in _by_name(self.receiver_tensors).items()}
        if not callable(self.features) and _shapes_of(self.features) != shapes:
            raise ValueError(
                f"features must be receiver_tensors themselves, or a function that computes them, got "
                f"{self.features!r} with receiver_tensors {self.receiver_tensors!r}. Write "
                "ServingInputReceiver(lambda tensors: {'x': tensors['x']}, receiver_tensors)."
            )

    def specs(self) -> dict[str, TensorSpec]:
        """The shape and dtype of each array that is passed, by name."""
        return {name: _checked(name, shape) for name, shape in _by_name(self.receiver_tensors).items()}

    def features_of(self, arrays: Mapping[str, Array]) -> Batch:
        """The features for arrays by name."""
        tensors = dict(arrays) if isinstance(self.receiver_tensors, Mapping) else arrays["input"]
        features = self.features(tensors) if callable(self.features) else tensors
        for name, leaf in named_leaves(features).items():
            if _kind(getattr(leaf, "dtype", type(leaf))) in ("S", "U", "O", "T"):
                raise TypeError(f"the features function of the receiver returned {leaf!r} as {name!r}. {_IN_FRONT}")
        return features


def build_raw_serving_input_receiver_fn(features: PyTree) -> Callable[[], ServingInputReceiver]:
    """A serving_input_receiver_fn whose callers pass the features themselves.

    Args:
      features: a dict by name of arrays `[rows, ...]` or TensorSpecs, or one of them; only shapes and dtypes are used.
        The number of rows stays open; None in another dimension leaves that one open, too.
    """

    def open_rows(name: str, shape: object) -> TensorSpec:
        described = _described(name, shape)
        if not described.shape:
            raise ValueError(_no_batch(name, described))
        return _checked(name, TensorSpec((None, *described.shape[1:]), described.dtype))

    shapes = {name: open_rows(name, shape) for name, shape in _by_name(features).items()}
    tensors = shapes if isinstance(features, Mapping) else shapes["input"]
    return lambda: ServingInputReceiver(tensors, tensors)


def _by_name(tensors: PyTree) -> dict[str, object]:
    if not isinstance(tensors, Mapping):
        return {"input": tensors}
    for name in tensors:
        if not isinstance(name, str):
            raise ValueError(
                f"receiver_tensors keys must be strings: {name!r}. Callers pass the arrays by these names."
            )
    return dict(tensors)


def _shapes_of(features: PyTree) -> dict[str, TensorSpec] | None:
    try:
        return {name: _checked(name, shape) for name, shape in _by_name(features).items()}
    except (TypeError, ValueError):
        return None


def _described(name: str, shape: PyTree) -> TensorSpec:
    """The shape and dtype of a TensorSpec, of an array, or of what else has both."""
    if isinstance(shape, str | bytes) or shape is str or shape is bytes:
        raise TypeError(f"receiver_tensors[{name!r}] is {shape!r}: a string. {_IN_FRONT}")
    if not (hasattr(shape, "shape") and hasattr(shape, "dtype")):
        raise TypeError(
            f"receiver_tensors[{name!r}] must have a shape and a dtype, got {shape!r}. Write "
            "export.TensorSpec((None, 28, 28), jnp.float32), None standing for the batch."
        )
    if _kind(shape.dtype) in ("S", "U", "O", "T") or "string" in str(shape.dtype):
        raise TypeError(f"receiver_tensors[{name!r}] has dtype {shape.dtype}: strings or objects. {_IN_FRONT}")
    try:
        holds_keys = is_key(shape)
    except TypeError as error:
        raise TypeError(
            f"receiver_tensors[{name!r}] has dtype {shape.dtype!r}, which JAX does not know. Expected one such as "
            "jnp.float32 or 'int32'."
        ) from error
    if holds_keys:
        raise TypeError(
            f"receiver_tensors[{name!r}] has dtype {shape.dtype}: random keys. Pass a seed, and write "
            "jax.random.key(seed[0]) in model_fn."
        )
    if not isinstance(shape.shape, Iterable) or isinstance(shape.shape, str):
        raise TypeError(
            f"receiver_tensors[{name!r}] has the shape {shape.shape!r}. Expected a tuple, with None first for the "
            "batch: export.TensorSpec((None, 28, 28), jnp.float32)."
        )
    return TensorSpec(tuple(shape.shape), jax.dtypes.canonicalize_dtype(shape.dtype))


def _kind(dtype: DType) -> str:
    try:
        return np.dtype(dtype).kind
    except TypeError:  # of JAX's own, as of keys; or TensorFlow's
        return ""


def _checked(name: str, shape: object) -> TensorSpec:
    described = _described(name, shape)
    if not described.shape or described.shape[0] is not None:
        raise ValueError(_no_batch(name, described))
    for size in described.shape[1:]:
        is_size = isinstance(size, int | np.integer) and size >= 0
        if not (size is None or is_size or (isinstance(size, str) and size.isidentifier() and size != "batch")):
            raise ValueError(
                f"receiver_tensors[{name!r}] has the shape {described.shape}, in which {size!r} is no dimension. "
                "Expected whole numbers, None for any size, or a name such as 'length' for one that several have."
            )
    return described


def _no_batch(name: str, described: TensorSpec) -> str:
    or_first = f", or {(None, *described.shape[1:])} if the first one is the batch" if described.shape else ""
    return (
        f"receiver_tensors[{name!r}] has no batch dimension: its shape is {described.shape}. Expected None first, as "
        f"in {(None, *described.shape)}{or_first}. (For fixed numbers of rows write export_saved_model(..., "
        "batch_sizes=[...]).)"
    )
