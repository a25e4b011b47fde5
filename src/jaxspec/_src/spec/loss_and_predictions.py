"""TensorFlow's rules for two fields that both specs have: `loss` and `predictions`."""

from collections.abc import Mapping

import numpy as np

from jaxspec._src.base.arrays import describe_array, is_array
from jaxspec._src.base.types import Array
from jaxspec._src.spec.mode import Mode, ModeKeys


def check_loss(mode: Mode, loss: Array | None) -> Array | None:
    """The loss as a scalar.

    Raises:
      ValueError: for a loss that the mode requires, or that is no scalar.
      TypeError: for a loss that is no array.
    """
    if loss is None:
        if mode in (ModeKeys.TRAIN, ModeKeys.EVAL):
            raise ValueError(f"Missing loss. In mode {mode!r} the spec needs loss=, a scalar array.")
        return None
    if not is_array(loss):
        raise TypeError(f"loss must be an array, given: {loss!r}. Use jnp.asarray(...) or a computed scalar.")
    if np.size(loss) != 1:
        raise ValueError(f"Loss must be scalar, given: {describe_array(loss)}. Reduce it, for example with .mean().")
    return loss.reshape(()) if loss.shape else loss


def check_predictions(mode: Mode, predictions: Array | Mapping[str, Array] | None) -> Array | dict[str, Array]:
    """The predictions, as an array or a dict; an empty dict for None.

    Raises:
      ValueError: for predictions that the mode requires.
      TypeError: for what is no array.
    """
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
