"""What a step returns of the spec that model_fn made."""

import optax

from jaxspec._src.spec.mode import ModeKeys
from jaxspec._src.spec.tpu_estimator_spec import TPUEstimatorSpec, WholeBatchSpec, replaced
from jaxspec._src.spec.train_op import TrainOp
from jaxspec._src.step.axis import shard_axis_is_bound

_APPLIED = TrainOp(optax.identity(), None, None, (), "mean", None, None)


def outputs_of(spec: TPUEstimatorSpec) -> TPUEstimatorSpec:
    """The spec without the arrays that its mode does not send to the host.

    TRAIN keeps loss and host_call's tensors, EVAL also those of eval_metrics, PREDICT predictions alone. The train_op
    has been applied: a placeholder takes its place, so that nothing of the trace stays alive.
    """
    predict = spec.mode == ModeKeys.PREDICT
    return replaced(
        spec,
        predictions=spec.predictions if predict else {},
        loss=None if predict else spec.loss,
        train_op=_APPLIED if spec.mode == ModeKeys.TRAIN else None,
        eval_metrics=spec.eval_metrics if spec.mode == ModeKeys.EVAL else None,
        export_outputs=None,
        host_call=None if predict else spec.host_call,
    )


def marked_if_whole(spec: TPUEstimatorSpec) -> TPUEstimatorSpec:
    """The spec, as a `WholeBatchSpec` if no mapping of the caller has split the batch."""
    return spec if shard_axis_is_bound() else WholeBatchSpec._make(spec)
