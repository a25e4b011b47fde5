"""The modes of model_fn."""

from typing import Final, Literal, TypeAlias

Mode: TypeAlias = Literal["train", "eval", "infer"]
"""The type of `mode`, for annotations: `def model_fn(variables, features, labels, mode: jaxspec.Mode)`."""


class ModeKeys:
    """The modes of model_fn."""

    TRAIN: Final = "train"
    EVAL: Final = "eval"
    PREDICT: Final = "infer"
