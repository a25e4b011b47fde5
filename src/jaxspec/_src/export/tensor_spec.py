"""TensorSpec: a shape with open dimensions, and a dtype."""

import dataclasses

from jaxspec._src.base.types import DType


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """The shape and dtype of an array that callers of an export pass.

    Attributes:
      shape: the first dimension is None, for the batch. None elsewhere stands for any size. Dimensions that are equal,
        whatever their size, have the same string: `(None, "length")`.
      dtype: as JAX takes it.
    """

    shape: tuple[int | str | None, ...]
    dtype: DType
