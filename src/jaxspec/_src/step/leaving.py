"""Which arrays of a spec leave the device."""

import optax

from jaxspec._src.spec.mode import ModeKeys
from jaxspec._src.spec.tpu_estimator_spec import TPUEstimatorSpec
from jaxspec._src.spec.train_op import TrainOp

_APPLIED = TrainOp(optax.identity(), None, None, (), "mean", None, None)


def leaving_device(spec: TPUEstimatorSpec) -> TPUEstimatorSpec:
    """The spec without the arrays that its mode does not send to the host.

    TRAIN keeps loss and host_call's tensors, EVAL also those of eval_metrics, PREDICT predictions alone. train_op
    has been applied: what stands in its place holds nothing of the trace.
    """
    train, evaluate = spec.mode == ModeKeys.TRAIN, spec.mode == ModeKeys.EVAL
    predict = spec.mode == ModeKeys.PREDICT
    # Not _replace, which checks: the rest of the spec was checked when the user made it.
    return TPUEstimatorSpec._make(
        (
            spec.mode,
            spec.predictions if predict else {},
            None if predict else spec.loss,
            _APPLIED if train else None,
            spec.eval_metrics if evaluate else None,
            None,
            spec.scaffold_fn,
            None if predict else spec.host_call,
            spec.training_hooks,
            spec.evaluation_hooks,
            spec.prediction_hooks,
        )
    )
