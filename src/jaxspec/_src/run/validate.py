"""The rules for the arguments of TPUEstimator and its verbs."""

import logging
import os
import tempfile

from jaxspec._src.base.callables import argument_names, describe
from jaxspec._src.base.files import existing_part, find_file
from jaxspec._src.base.hyperparameters import holds, with_values
from jaxspec._src.base.paths import absolute_path, in_bucket
from jaxspec._src.base.removed_arguments import IGNORED, log_ignored
from jaxspec._src.base.types import HyperParameters, InputFn
from jaxspec._src.base.validate import check_arguments, check_number
from jaxspec._src.run.config import InputPipelineConfig, RunConfig
from jaxspec._src.spec.tpu_estimator_spec import ModelFn

_logger = logging.getLogger("jaxspec")

LAST_STEP = 2**31 - 1
"""The global step is an int32."""


def check_steps(verb: str, steps: int | None, max_steps: int | None) -> None:
    """Raises unless at most one is given, and that is a positive integer."""
    if steps is not None and max_steps is not None:
        raise ValueError("Can not provide both steps and max_steps. steps adds to what is there, max_steps is a total.")
    for name, value in (("steps", steps), ("max_steps", max_steps)):
        check_number(f"{verb} {name}", value, above=0, maximum=LAST_STEP, whole=True)


def check_input_fn(input_fn: InputFn) -> None:
    """Raises unless `input_fn` can be called with `params`, `mode` and `config`."""
    instead = "Write a function that returns batches, such as jaxspec.inputs.numpy_input_fn(x, y)."
    if hasattr(input_fn, "__iter__"):
        instead = (
            "Write a function that makes it, so that each call begins anew: "
            "input_fn=lambda: dataset, or def input_fn(params): return ..."
        )
    check_arguments(input_fn, role="input_fn", allowed=("params", "mode", "config"), instead=instead)


def check_last_step(step: int, stop: int | None) -> None:
    """Raises if training from `step` to `stop` leads past the last number that a step may have."""
    if stop is not None and stop > LAST_STEP:
        raise ValueError(
            f"training {stop - step} steps from step {step} leads past {LAST_STEP}, the last number that a step may "
            "have; make fewer steps, or begin anew in another model_dir."
        )


def check_params(model_fn: ModelFn, params: HyperParameters) -> None:
    """Raises if `params` holds reserved keys or takes no further ones, or model_fn does not name `params`."""
    if params is None:
        return
    reserved = [key for key in ("batch_size", "context") if holds(params, key)]
    if reserved:
        raise ValueError(
            f"['batch_size', 'context'] are reserved keys but existed in params {params}. Rename {reserved}: the "
            "estimator fills these in."
        )
    if type(params).__module__ != "builtins":  # as TensorFlow, which takes a list here, and refuses it when it is used
        with_values(params, batch_size=1, use_tpu=True, context=None)  # for its checks
    if callable(model_fn):
        names, takes_any = argument_names(model_fn)
        if params and not takes_any and "params" not in names:
            raise ValueError(
                f"model_fn ({describe(model_fn)}) does not include params argument, but params ({params}) is passed to "
                "Estimator. Add the argument `params` to model_fn."
            )


def choose_model_dir(model_dir: str | os.PathLike[str] | None, config: RunConfig) -> str:
    """The absolute path of the directory of the constructor or of the config, which must not disagree.

    Without either it is a temporary directory.
    """
    paths = [os.fspath(path) for path in (model_dir, config.model_dir) if path is not None]
    if not all(paths):
        raise ValueError("model_dir should be non-empty.")
    if len({absolute_path(path) for path in paths}) > 1:
        raise ValueError(
            "`model_dir` are set both in constructor and `RunConfig`, but with different values. In constructor: "
            f"'{paths[0]}', in `RunConfig`: '{paths[1]}'. Set one of them."
        )
    if not paths:
        paths.append(tempfile.mkdtemp())
        _logger.warning("Using temporary folder as model directory: %s", paths[0])
    directory = absolute_path(paths[0])
    if not in_bucket(directory) and find_file(place := existing_part(directory)) is not None:
        raise NotADirectoryError(
            f"model_dir is {directory}, but {place} is a file. Name a directory, or a path where one can be made."
        )
    return directory


def check_supported(config: RunConfig) -> None:
    """Raises for what TPUConfig can say and the estimator cannot do; a log line names fields that have no effect."""
    tpu = config.tpu_config
    assert tpu is not None
    log_ignored("TPUConfig", [name for name in IGNORED["TPUConfig"] if getattr(tpu, name)])
    per_host = (InputPipelineConfig.PER_HOST_V1, InputPipelineConfig.PER_HOST_V2)
    if tpu.num_cores_per_replica is not None and tpu.per_host_input_for_training not in per_host:
        raise ValueError(
            "Model parallelism only supports per host input for training. Please adjust "
            "TPUConfig.per_host_input_for_training."
        )
    if tpu.num_cores_per_replica is not None or tpu.input_partition_dims is not None:
        raise ValueError(
            "TPUConfig num_cores_per_replica and input_partition_dims (model parallelism) are not supported yet; leave "
            "them None: each device holds the whole model."
        )
    if tpu.per_host_input_for_training not in per_host:
        raise ValueError(
            f"per_host_input_for_training={tpu.per_host_input_for_training!r} is not supported: input_fn runs once in "
            "each process. Use InputPipelineConfig.PER_HOST_V2, and params['context'] to choose files."
        )
    if tpu.eval_training_input_configuration not in per_host:
        raise ValueError(
            "eval_training_input_configuration=SLICED is not supported: leave it out, batches are split anyway."
        )


def no_batch_message(input_fn: InputFn, verb: str) -> str:
    """What to say of an input without a batch."""
    return (
        f"{verb} made no steps: input_fn ({describe(input_fn)}) yielded no batch. Perhaps its input is empty, or an "
        "iterator that was used up before; input_fn must make a new one at each call."
    )
