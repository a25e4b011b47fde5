"""TensorFlow's arguments that jaxspec does not take, and what to write instead of each."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_ANY_DEVICE = "leave it out: the same program runs on whatever devices there are (use_tpu=False: on one CPU)."
_ANY_EXPORT = "leave it out: an exported function runs on any device."
_NO_SERVERS = "leave it out: there are no servers and no sessions; jax.distributed.initialize() joins processes."
_ALL_DEVICES = "leave it out: a step is mapped over all devices, or over TPUConfig(num_shards=...) of them."
_OPTIMIZER = {
    "global_step": "leave it out: the runner counts the steps.",
    "var_list": "write of=: a key of variables['params'], several keys, or a predicate on the path.",
    "grad_loss": "scale the loss instead.",
    **dict.fromkeys(("name", "gate_gradients", "aggregation_method", "colocate_gradients_with_ops"), "leave it out."),
}

REMOVED: Mapping[str, Mapping[str, str]] = {
    "TPUEstimator": {
        "batch_axis": "leave it out, and let input_fn put examples along axis 0 of every array.",
        "eval_on_tpu": _ANY_DEVICE,
        "export_to_tpu": _ANY_EXPORT,
        "export_to_cpu": _ANY_EXPORT,
        "export_saved_model_api_version": _ANY_EXPORT,
        "embedding_config_spec": "embed in model_fn: flax.linen.Embed, with its table among the variables.",
    },
    "RunConfig": {
        **dict.fromkeys(("master", "evaluation_master", "cluster", "session_config"), _NO_SERVERS),
        **dict.fromkeys(("device_fn", "protocol", "session_creation_timeout_secs"), _NO_SERVERS),
        "experimental_max_worker_delay_secs": _NO_SERVERS,
        **dict.fromkeys(("train_distribute", "eval_distribute", "experimental_distribute"), _ALL_DEVICES),
        "checkpoint_save_graph_def": "leave it out: there is no graph to save.",
    },
    "TPUEstimatorSpec": {
        "eval_metric_ops": "write eval_metrics=(metric_fn, tensors), "
        "where metric_fn(*tensors) returns {'name': jaxspec.metrics....}.",
        "scaffold": "write scaffold_fn=, a function that returns the Scaffold.",
        "training_chief_hooks": "write training_hooks=.",
    },
    "WarmStartSettings": {
        "var_name_to_vocab_info": "leave that variable out of vars_to_warm_start, and let Scaffold.init_fn put the "
        "rows of the old vocabulary into their places in the new one.",
    },
    "minimize": _OPTIMIZER,
    "apply_gradients": _OPTIMIZER,
}
"""By the name of the function or class: the argument, and what to write instead."""

CALLS = {
    "TPUEstimator": "Write TPUEstimator(model_fn, init_fn, model_dir=..., config=..., params=...).",
    "RunConfig": "Write RunConfig(TPUConfig(...), model_dir=...).",
    "minimize": "Write jaxspec.minimize(optimizer), which differentiates the spec's own loss; "
    "a loss that is given is a "
    "function of the variables. The runner counts the steps.",
    "apply_gradients": "Write jaxspec.apply_gradients(optimizer, grads), "
    "with grads as the tree of variables['params']. The "
    "runner counts the steps.",
}
"""By the name of the function or class: the call as it should be."""


def explain_removed_arguments(fn: Callable[P, R]) -> Callable[P, R]:
    """A decorator for functions and constructors: the TypeError of a wrong call says what to write instead."""
    name, signature = fn.__qualname__.removesuffix(".__init__").removesuffix(".__new__"), inspect.signature(fn)

    @functools.wraps(fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            key = name.rpartition(".")[-1]
            removed = REMOVED.get(key, {})
            parts = [f"{name}: {error}.", *(f"{arg}: {removed[arg]}" for arg in kwargs if arg in removed)]
            raise TypeError(" ".join([*parts, CALLS.get(key, "")]).rstrip()) from None
        return fn(*args, **kwargs)

    return call
