"""Calling the host functions of a host spec."""

from jaxspec._src.spec.estimator_spec import EstimatorSpec
from jaxspec._src.spec.host_functions import HostCallHook
from jaxspec._src.spec.mode import ModeKeys
from jaxspec._src.spec.tpu_estimator_spec import TPUEstimatorSpec, replaced


def on_host(spec: TPUEstimatorSpec) -> EstimatorSpec:
    """The EstimatorSpec of one step's host spec. scaffold_fn is not called: it belongs to the start of a session."""
    return replaced(spec, scaffold_fn=None).as_estimator_spec()


def run_host_call(spec: EstimatorSpec) -> None:
    """Runs the host_call of a step, if its spec has one."""
    hooks = spec.training_hooks if spec.mode == ModeKeys.TRAIN else spec.evaluation_hooks
    for hook in hooks:
        if isinstance(hook, HostCallHook):
            hook.run()
