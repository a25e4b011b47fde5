"""TensorFlow's arguments that jaxspec lacks: some are ignored with a log line, others refused with what to write."""

import functools
import inspect
import logging
from collections.abc import Callable, Collection, Mapping
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_logger = logging.getLogger("jaxspec")

_ALL_DEVICES = "leave it out: a step is mapped over all devices, or over TPUConfig(num_shards=...) of them."
_OPTIMIZER = {
    "global_step": "leave it out: the runner counts the steps.",
    "var_list": "write of=: a key of variables['params'], several keys, or a predicate on the path.",
    "grad_loss": "scale the loss instead.",
    **dict.fromkeys(("name", "gate_gradients", "aggregation_method", "colocate_gradients_with_ops"), "leave it out."),
}

IGNORED: Mapping[str, Collection[str]] = {
    "TPUEstimator": ("eval_on_tpu", "export_to_tpu", "export_to_cpu", "export_saved_model_api_version"),
    "RunConfig": (
        *("master", "evaluation_master", "cluster", "session_config", "session_creation_timeout_secs"),
        *("device_fn", "protocol", "experimental_max_worker_delay_secs", "checkpoint_save_graph_def"),
    ),
    "TPUConfig": (
        *("tpu_job_name", "initial_infeed_sleep_secs", "experimental_feed_hook"),
        "experimental_allow_per_host_v2_parallel_get_next",
    ),
}
"""By the name of the class: the arguments and fields that change no result here. There are no servers, sessions and
graphs, and one program for all devices."""

REMOVED: Mapping[str, Mapping[str, str]] = {
    "TPUEstimator": {
        "batch_axis": "leave it out, and let input_fn put examples along axis 0 of every array.",
        "embedding_config_spec": "embed in model_fn: flax.linen.Embed, with its table among the variables.",
    },
    "RunConfig": {
        **dict.fromkeys(("train_distribute", "eval_distribute", "experimental_distribute"), _ALL_DEVICES),
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
    "WarmStartSettings": "Write WarmStartSettings(path, vars_to_warm_start=..., var_name_to_prev_var_name=...).",
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


def log_ignored(name: str, arguments: Collection[str]) -> None:
    """Names arguments that were given to a function or class and have no effect."""
    if arguments:
        listed = ", ".join(arguments)
        _logger.warning("%s ignores arguments that have no effect in JAX: %s. Leave them out.", name, listed)


def handle_removed_arguments(fn: Callable[P, R]) -> Callable[P, R]:
    """A decorator for functions and constructors, which lets them be called with arguments of TensorFlow's.

    The arguments in `IGNORED` are not passed on, and a log line names those that are not None. The TypeError of another
    wrong call says what to write instead.
    """
    name, signature = fn.__qualname__.removesuffix(".__init__").removesuffix(".__new__"), inspect.signature(fn)

    @functools.wraps(fn)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        ignored = {arg: kwargs.pop(arg) for arg in IGNORED.get(name, ()) if arg in kwargs}
        log_ignored(name, [arg for arg, value in ignored.items() if value is not None])
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            key = name.rpartition(".")[-1]
            removed = REMOVED.get(key, {})
            parts = [f"{name}: {error}.", *(f"{arg}: {removed[arg]}" for arg in kwargs if arg in removed)]
            raise TypeError(" ".join([*parts, CALLS.get(key, "")]).rstrip()) from None
        return fn(*args, **kwargs)

    return call
