"""The values of `export_outputs`: what the signature of an export returns. Pytrees whose leaves are the arrays."""

from collections.abc import Mapping

import jax
import numpy as np

from jaxspec._src.base.arrays import is_array
from jaxspec._src.base.types import Array, PyTree
from jaxspec._src.spec.mode import Mode, ModeKeys

DEFAULT_SERVING_SIGNATURE = "serving_default"


class ExportOutput:
    """Base class of what `export_outputs` holds. `outputs` maps names to arrays `[batch, ...]`."""

    outputs: Mapping[str, Array]

    def __init_subclass__(cls) -> None:
        jax.tree_util.register_pytree_with_keys(
            cls,
            lambda self: (((jax.tree_util.DictKey("outputs"), dict(self.outputs)),), None),
            lambda _, children: _rebuild(cls, *children),
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({dict(self.outputs)!r})"


def _rebuild(cls: type[ExportOutput], outputs: PyTree) -> ExportOutput:
    # Without __init__: JAX rebuilds a pytree with tracers, None or anything else as leaves.
    self = object.__new__(cls)
    self.outputs = outputs
    return self


class PredictOutput(ExportOutput):
    """Arrays of all kinds. `outputs`: a dict of arrays, or one array, which is then named `output`."""

    def __init__(self, outputs: Array | Mapping[str, Array]) -> None:
        if not isinstance(outputs, Mapping):
            outputs = {"output": outputs}
        for key, value in outputs.items():
            if not isinstance(key, str):
                raise ValueError(f"Prediction output key must be a string; got {key!r}.")
            if not is_array(value):
                raise ValueError(f"Prediction output value must be an array; got {value!r} for {key!r}.")
        self.outputs = dict(outputs)


class RegressionOutput(ExportOutput):
    """One floating array, `value` `[batch, ...]`."""

    def __init__(self, value: Array) -> None:
        if not (is_array(value) and jax.numpy.issubdtype(value.dtype, np.floating)):
            raise ValueError(f"Regression output value must be a floating array; got {value!r}.")
        self.outputs = {"outputs": value}


class ClassificationOutput(ExportOutput):
    """`scores`: floating `[batch, classes]`; `classes`: integer ids `[batch, classes]` (devices hold no strings)."""

    def __init__(self, scores: Array | None = None, classes: Array | None = None) -> None:
        if scores is None and classes is None:
            raise ValueError(
                "Cannot create a ClassificationOutput with empty arguments. "
                "At least one of `scores` and `classes` must be defined."
            )
        if scores is not None and not (is_array(scores) and jax.numpy.issubdtype(scores.dtype, np.floating)):
            raise ValueError(f"Classification scores must be a floating array; got {scores!r}.")
        if classes is not None and not is_array(classes):
            raise ValueError(f"Classification classes must be an array; got {classes!r}.")
        named = {"scores": scores, "classes": classes}
        self.outputs = {key: value for key, value in named.items() if value is not None}


def check_export_outputs(
    mode: Mode, export_outputs: Mapping[str, ExportOutput] | None, predictions: Array | Mapping[str, Array]
) -> Mapping[str, ExportOutput] | None:
    """The signatures of a spec, in PREDICT with `serving_default` among them; other modes ignore the field.

    None means one PredictOutput of the predictions; a single entry is also the default one.
    """
    if mode != ModeKeys.PREDICT:
        return export_outputs
    if export_outputs is None:
        return {DEFAULT_SERVING_SIGNATURE: PredictOutput(predictions)}
    if not isinstance(export_outputs, Mapping):
        raise TypeError(f"`export_outputs` must be dict, received: {export_outputs!r}.")
    for name, value in export_outputs.items():
        if not isinstance(name, str):
            raise TypeError(
                f"`export_outputs` must have strings for keys, the names of signatures, received: {name!r}."
            )
        if not isinstance(value, ExportOutput):
            raise TypeError(
                f"Values in `export_outputs` must be ExportOutput objects, received: {export_outputs!r}. "
                "Wrap them: {'serving_default': jaxspec.export.PredictOutput({...})}."
            )
    outputs = dict(export_outputs)
    if DEFAULT_SERVING_SIGNATURE not in outputs:
        if len(outputs) != 1:
            raise ValueError(
                "Multiple `export_outputs` were provided, but none of them are specified as the default. Name one "
                f"of {sorted(outputs)} {DEFAULT_SERVING_SIGNATURE!r}."
            )
        outputs[DEFAULT_SERVING_SIGNATURE] = next(iter(outputs.values()))
    return outputs
