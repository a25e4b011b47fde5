"""Which recorded cases do not carry over, and why: the explicit list of this folder.

A rule looks at what a case does, not at its name, so that it decides on other recordings too.
Each says what this library does instead, and the tests hold it to that. A case without a rule is replayed.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from contract_values import find, holds

ACCEPTED = "accepted"
LEFT_OUT = "left out"


@dataclasses.dataclass(frozen=True)
class Difference:
    """A rule for cases that do not carry over.

    `ours` is what happens here: `ACCEPTED`, the type of the exception, or `LEFT_OUT` where the case has no
    meaning.
    """

    applies: Callable[[dict[str, Any]], bool]
    ours: Any
    reason: str


NOT_BUILT_YET = {}
"""Targets that the library may lack for now. As soon as it has one, under `jaxspec` or one of the submodules
`hooks`, `checkpoint` and `export`, its cases are replayed by themselves; then delete its line, so that it
cannot be lost again."""


def _given(case, name):
    return case["kwargs"].get(name)


def _names_foreign_argument(case):
    if not case.get("tensorflow_only") or case["target"] == "call" or find(case["target"]) is None:
        return False
    taken = inspect.signature(find(case["target"])).parameters
    return any(name not in taken for name in case["kwargs"])


def _is_unknown_input_kind(case):
    kind = _given(case, "per_host_input_for_training")
    return isinstance(kind, int) and not isinstance(kind, bool) and not 1 <= kind <= 5


def _is_spec(case):
    return case["target"].startswith("TPUEstimatorSpec")


def _leaves_out_a_default(case):
    """Whether a list of tensors is shorter than the arguments, and those that are left over have defaults."""
    for name in ("eval_metrics", "host_call"):
        pair = _given(case, name)
        pair = pair.get("$tuple") if isinstance(pair, dict) else pair
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not isinstance(pair[1], list)
            or not isinstance(pair[0], dict)
        ):
            continue
        arguments = pair[0].get("$fn", [])
        needed = sum("=" not in argument and "*" not in argument for argument in arguments)
        if needed <= len(pair[1]) < len(arguments) and not any("*" in argument for argument in arguments):
            return True
    return False


VALIDATION = {
    "TF_CONFIG": Difference(
        lambda case: "TF_CONFIG" in case.get("environment", {}),
        ACCEPTED,
        "There are no TF_CONFIG clusters: jax.distributed knows the processes. The variable is not read, so "
        "nothing that stands in it is an error.",
    ),
    "tensor of another graph": Difference(
        lambda case: holds(case["kwargs"], "$foreign"), LEFT_OUT, "Arrays belong to no graph."
    ),
    "argument of sessions, servers or graphs": Difference(
        _names_foreign_argument,
        ACCEPTED,
        "There are no sessions, servers and graphs: the arguments that describe them are ignored, with a log line.",
    ),
    "iterations_per_loop with a pipe": Difference(
        lambda case: isinstance(text := _given(case, "iterations_per_loop"), str) and text.endswith("|"),
        ValueError,
        "A slip in TensorFlow's regular expression.",
    ),
    "unknown kind of input": Difference(
        _is_unknown_input_kind,
        ValueError,
        "TensorFlow takes any number as an InputPipelineConfig and fails later.",
    ),
    "no config": Difference(
        lambda case: case["target"] == "TPUEstimator" and "config" not in case["kwargs"],
        ACCEPTED,
        "config may be left out: RunConfig() stands in.",
    ),
    "no train_batch_size": Difference(
        lambda case: (
            case["target"] == "TPUEstimator"
            and _given(case, "use_tpu") is True
            and _given(case, "train_batch_size") is None
        ),
        ACCEPTED,
        "Each batch size is needed by its own verb only, which asks for it.",
    ),
    "NumPy array in a spec": Difference(
        lambda case: _is_spec(case) and holds(case["kwargs"], "$array"),
        ACCEPTED,
        "A model_fn called by hand with NumPy arrays gives a spec: NumPy arrays are arrays.",
    ),
    "array as train_op": Difference(
        lambda case: _is_spec(case) and holds({"train_op": _given(case, "train_op")}, "$tensor"),
        TypeError,
        "train_op is no tensor to run any more: it says how the variables change.",
    ),
    "a default left out": Difference(
        _leaves_out_a_default,
        ACCEPTED,
        "TensorFlow counts an argument with a default as one that needs a tensor. It is called as Python would.",
    ),
    "fraction of a step": Difference(
        lambda case: (
            case["target"] == "call" and any(isinstance(_given(case, name), float) for name in ("steps", "max_steps"))
        ),
        TypeError,
        "TensorFlow rounds up on a CPU and refuses on a TPU: refused on all devices alike.",
    ),
}

VALIDATION_FIELDS = {
    ("TPUConfig", "iterations_per_loop"): (100, "The default is 100, as loops end where something is due."),
    ("TPUEstimator", "config.log_step_count_steps"): (
        100,
        "TPUEstimator clears it to log rates with a hook of its own; here it goes on counting steps.",
    ),
}
"""Fields with another default here: our value where the case does not set the field, and the reason."""


def _kinds(case):
    return {case["per_host_input_for_training"], case["eval_training_input_configuration"]}


def _is_batch(case):
    return case["name"].startswith("batch/")


def _is_call(case, verb):
    return case.get("call") == verb


TPU_RULES = {
    "other kinds of input": Difference(
        lambda case: _is_batch(case) and not _kinds(case) <= {"PER_HOST_V1", "PER_HOST_V2"},
        ValueError,
        "PER_SHARD, BROADCAST and SLICED input are left out: input_fn runs once in each process and yields "
        "its rows. The constructor says so.",
    ),
    "several hosts": Difference(
        lambda case: _is_batch(case) and case["num_hosts"] != 1,
        LEFT_OUT,
        "Needs as many processes. TensorFlow's refusals to evaluate and predict on several hosts are gone: "
        "each process maps over its own devices there.",
    ),
    "no cores": Difference(
        lambda case: case.get("num_cores") == 0, LEFT_OUT, "JAX always has a device: the CPU, if no other."
    ),
    "fewer shards than cores": Difference(
        lambda case: 0 < (case.get("tpu_config", {}).get("num_shards") or 0) < case.get("num_cores", 0),
        ACCEPTED,
        "num_shards chooses how many of the devices are used.",
    ),
    "train to the end of the input": Difference(
        lambda case: _is_call(case, "train") and not case["call_kwargs"],
        ACCEPTED,
        "The end of the input is a clean stop on every device, so steps and max_steps may both be None.",
    ),
    "evaluate to the end of the input": Difference(
        lambda case: _is_call(case, "evaluate") and case["call_kwargs"].get("steps") is None,
        ACCEPTED,
        "steps=None means all of the input on every device.",
    ),
}

PER_HOST_V2 = (
    "PER_HOST_V1 and PER_HOST_V2 mean the same: params['batch_size'] of input_fn is what this process must "
    "yield, where TensorFlow's PER_HOST_V2 gives the rows of one replica."
)
"""Why the batch size of input_fn differs from the recorded one in PER_HOST_V2; all else is as recorded."""

LOOPS = (
    "Checkpoints fall exactly on their steps, and loops end there. TensorFlow writes one at the first end of "
    "a loop past the due step, so only where loops end at every due step anyway is all as recorded."
)
"""Why loops and checkpoints differ from the recorded ones where a checkpoint is due inside a loop."""


def difference(case, rules):
    """(name, rule) of the first rule that takes the case, or None if it is to be replayed."""
    return next(((name, rule) for name, rule in rules.items() if rule.applies(case)), None)
