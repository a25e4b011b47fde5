"""TensorFlow's rules for the fields of arrays that both specs have."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from jaxspec._src.base.arrays import describe_array, is_array
from jaxspec._src.base.types import Array
from jaxspec._src.spec.export_outputs import ExportOutput, check_export_outputs
from jaxspec._src.spec.mode import ModeKeys
from jaxspec._src.spec.train_op import TrainOp, TrainOpLike, as_train_ops


class ArrayFields(Protocol):
    """The fields that both specs have, as a user gives them."""

    @property
    def mode(self) -> str: ...
    @property
    def predictions(self) -> Array | Mapping[str, Array] | None: ...
    @property
    def loss(self) -> Array | None: ...
    @property
    def train_op(self) -> TrainOpLike | None: ...
    @property
    def export_outputs(self) -> Mapping[str, ExportOutput] | None: ...


def check_arrays(
    spec: ArrayFields,
) -> tuple[
    TrainOp | tuple[TrainOp, ...] | None,
    Array | None,
    Array | dict[str, Array],
    Mapping[str, ExportOutput] | None,
]:
    """Checks train_op, loss, predictions and export_outputs, in TensorFlow's order, and returns them in one form each.

    Raises:
      ValueError: for a field that the mode requires, and for a wrong shape.
      TypeError: for what is no array, TrainOp or ExportOutput.
    """
    train_op = _checked_train_op(spec.mode, spec.train_op)
    loss = _checked_loss(spec.mode, spec.loss)
    predictions = _checked_predictions(spec.mode, spec.predictions)
    export_outputs = spec.export_outputs
    if spec.mode == ModeKeys.PREDICT:
        export_outputs = check_export_outputs(export_outputs, predictions)
    return train_op, loss, predictions, export_outputs


def _checked_train_op(mode: str, train_op: TrainOpLike | None) -> TrainOp | tuple[TrainOp, ...] | None:
    if train_op is None:
        if mode == ModeKeys.TRAIN:
            raise ValueError("Missing train_op. In mode TRAIN write train_op=jaxspec.minimize(optax.adam(1e-3)).")
        return None
    ops = as_train_ops(train_op)
    return ops[0] if len(ops) == 1 else ops


def _checked_loss(mode: str, loss: Array | None) -> Array | None:
    if loss is None:
        if mode in (ModeKeys.TRAIN, ModeKeys.EVAL):
            raise ValueError(f"Missing loss. In mode {mode!r} the spec needs loss=, a scalar array.")
        return None
    if not is_array(loss):
        raise TypeError(f"loss must be an array, given: {loss!r}. Use jnp.asarray(...) or a computed scalar.")
    if np.size(loss) != 1:
        raise ValueError(f"Loss must be scalar, given: {describe_array(loss)}. Reduce it, for example with .mean().")
    return loss.reshape(()) if loss.shape else loss


def _checked_predictions(mode: str, predictions: Array | Mapping[str, Array] | None) -> Array | dict[str, Array]:
    if predictions is None:
        if mode == ModeKeys.PREDICT:
            raise ValueError("Missing predictions. In mode 'infer' the spec needs predictions=, an array or a dict.")
        return {}
    if isinstance(predictions, Mapping):
        for key, value in predictions.items():
            if not is_array(value):
                raise TypeError(f"predictions[{key}] must be an array, given: {value!r}.")
        return dict(predictions)
    if not is_array(predictions):
        raise TypeError(f"predictions must be an array or a dict of arrays, given: {predictions!r}.")
    return predictions
