"""TensorFlow's rules for the fields that both specs have."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxspec._src.base.arrays import describe_array, is_array
from jaxspec._src.spec.export_outputs import check_export_outputs
from jaxspec._src.spec.mode import ModeKeys
from jaxspec._src.spec.train_op import as_train_ops


def check_arrays(
    mode: Any, train_op: Any, loss: Any, predictions: Any, export_outputs: Any
) -> tuple[Any, Any, Any, Any]:
    """The rules for fields that both kinds of spec have, in TensorFlow's order."""
    if train_op is None:
        if mode == ModeKeys.TRAIN:
            raise ValueError("Missing train_op. In mode TRAIN write train_op=jaxspec.minimize(optax.adam(1e-3)).")
    else:
        ops = as_train_ops(train_op)
        train_op = ops[0] if len(ops) == 1 else ops
    if loss is None:
        if mode in (ModeKeys.TRAIN, ModeKeys.EVAL):
            raise ValueError(f"Missing loss. In mode {mode!r} the spec needs loss=, a scalar array.")
    else:
        loss = _check_loss(loss)
    if predictions is None:
        if mode == ModeKeys.PREDICT:
            raise ValueError("Missing predictions. In mode 'infer' the spec needs predictions=, an array or a dict.")
        predictions = {}
    elif isinstance(predictions, Mapping):
        for key, value in predictions.items():
            if not is_array(value):
                raise TypeError(f"predictions[{key}] must be an array, given: {value!r}.")
        predictions = dict(predictions)
    elif not is_array(predictions):
        raise TypeError(f"predictions must be an array or a dict of arrays, given: {predictions!r}.")
    if mode == ModeKeys.PREDICT:
        export_outputs = check_export_outputs(export_outputs, predictions)
    return train_op, loss, predictions, export_outputs


def _check_loss(loss: Any) -> Any:
    if not is_array(loss):
        raise TypeError(f"loss must be an array, given: {loss!r}. Use jnp.asarray(...) or a computed scalar.")
    if np.size(loss) != 1:
        raise ValueError(f"Loss must be scalar, given: {describe_array(loss)}. Reduce it, for example with .mean().")
    return loss.reshape(()) if loss.shape else loss
