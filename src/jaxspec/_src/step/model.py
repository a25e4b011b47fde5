"""Calls model_fn, checks its spec, and drops the arrays that the host does not need in this mode."""

import copy

import jax
import optax

from jaxspec._src.base.callables import argument_names, call_by_name, describe, open_parameters
from jaxspec._src.base.hyperparameters import holds, with_values
from jaxspec._src.base.tpu_context import TPUContext
from jaxspec._src.base.types import Array, Batch, HyperParameters, PyTree, Variables
from jaxspec._src.base.validate import check_arguments
from jaxspec._src.spec.fetch_names import check_fetch_names
from jaxspec._src.spec.host_functions import check_keywords
from jaxspec._src.spec.mode import Mode, ModeKeys
from jaxspec._src.spec.tpu_estimator_spec import ModelFn, TPUEstimatorSpec, WholeBatchSpec, replaced
from jaxspec._src.spec.train_op import TrainOp
from jaxspec._src.step.axis import SHARD_AXIS, shard_axis_is_bound
from jaxspec._src.step.error_notes import note_model_fn_error
from jaxspec._src.step.recompilation import RecompilationWatch

MODEL_FN_ARGUMENTS = ("features", "labels", "mode", "params", "config", "variables", "opt_state", "step", "rng")


class Model:
    """A model_fn with its hyper-parameters: `model(mode, variables, features, labels, ...) -> spec`."""

    def __init__(self, model_fn: ModelFn, params: HyperParameters = None, config: object = None):
        check_arguments(model_fn, role="model_fn", allowed=MODEL_FN_ARGUMENTS, required=("features",))
        names, takes_any = argument_names(model_fn)
        self._takes_labels = takes_any or "labels" in names
        self.takes_opt_state = "opt_state" in names
        required = [p.name for p in open_parameters(model_fn) if p.default is p.empty]
        self._requires_opt_state = "opt_state" in required
        self.takes_variables = takes_any or "variables" in names
        self.model_fn = model_fn
        self.params = params
        self.config = config
        self._watch = RecompilationWatch()

    def params_for(self, features: Batch) -> HyperParameters:
        """The `params` for one batch: a copy of the hyper-parameters, `batch_size`, `use_tpu` and `context`."""
        replicas = jax.lax.axis_size(SHARD_AXIS) if shard_axis_is_bound() else 1
        defaults = {"use_tpu": True, "context": TPUContext(replicas, _host=None)}
        leaves = [leaf for leaf in jax.tree.leaves(features) if getattr(leaf, "ndim", 0)]
        size = {"batch_size": leaves[0].shape[0]} if leaves else {}
        return with_values(self.params, **{k: v for k, v in defaults.items() if not holds(self.params, k)}, **size)

    def __call__(
        self,
        mode: Mode,
        variables: Variables,
        features: Batch,
        labels: Batch,
        *,
        step: Array,
        rng: jax.Array,
        opt_state: PyTree = None,
    ) -> TPUEstimatorSpec:
        """Calls model_fn on one shard's batch and checks what it returns for `mode`.

        Args:
          opt_state: model_fn gets it in EVAL and PREDICT; in TRAIN it gets None, because it makes the optimizer.
        """
        if mode != ModeKeys.TRAIN and opt_state is None and self._requires_opt_state:
            raise ValueError(
                f"model_fn ({describe(self.model_fn)}) names `opt_state` in mode {mode!r}, but there is no optimizer "
                "state: nothing has been trained here. Train first, or write opt_state=None in its signature and do "
                "without."
            )
        if mode == ModeKeys.PREDICT:
            labels = None
        elif labels is not None and not self._takes_labels:
            raise ValueError(
                f"model_fn does not take labels, but input_fn returns labels. Add the argument `labels` to "
                f"{describe(self.model_fn)}, or let input_fn yield features only."
            )
        variables = dict(variables)  # a copy that model_fn may change
        available = {
            "features": features,
            "labels": labels,
            "mode": mode,
            "params": self.params_for(features),
            "config": copy.deepcopy(self.config),
            "variables": variables,
            "opt_state": None if mode == ModeKeys.TRAIN else opt_state,
            "step": step,
            "rng": rng,
        }
        self._watch.called(mode, features=features, labels=labels, variables=variables)
        try:
            spec = call_by_name(self.model_fn, available)
        except Exception as error:
            note_model_fn_error(error, variables, mode=mode, labels=labels)
            raise
        if not isinstance(spec, TPUEstimatorSpec):
            raise ValueError(
                f"model_fn should return a TPUEstimatorSpec, got {type(spec).__name__} from "
                f"{describe(self.model_fn)} in mode {mode!r}. Write return jaxspec.TPUEstimatorSpec(mode, ...)."
            )
        if spec.mode != mode:
            spec = spec._replace(mode=mode)
        if mode != ModeKeys.PREDICT:
            check_keywords("host_call", spec.host_call)
        if mode == ModeKeys.EVAL:
            check_keywords("eval_metrics", spec.eval_metrics)
        if mode == ModeKeys.PREDICT and isinstance(spec.predictions, dict) and not spec.predictions:
            raise ValueError(
                f"predictions is an empty dict in mode 'infer' ({describe(self.model_fn)}), so predict would yield "
                "nothing. Put at least one array with a leading batch axis into it: predictions={'class': "
                "logits.argmax(-1)}."
            )
        check_fetch_names(spec, step)
        return spec


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
