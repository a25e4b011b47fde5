"""Notes that are added to errors of model_fn and init_fn: what to write instead."""

import os
import re
import traceback
from types import FrameType

import jax

from jaxspec._src.base.types import Batch, Variables
from jaxspec._src.spec.mode import Mode, ModeKeys
from jaxspec._src.step.axis import SHARD_AXIS

_NO_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
_OF_NONE = (TypeError, AttributeError, ValueError)
"""What JAX, NumPy and Python raise for None in the place of an array. Not all of their messages mention None."""
_JAXSPEC = os.path.dirname(os.path.dirname(__file__))


def note_traced_error(error: Exception) -> None:
    """Adds a note to an error of code that is being traced, model_fn or init_fn."""
    if isinstance(error, NameError) and "unbound axis name" in str(error):
        error.add_note(
            f"jaxspec: the axis that is mapped over is called jaxspec.SHARD_AXIS ({SHARD_AXIS!r}), in every mode and "
            "on any number of devices. Write nn.BatchNorm(axis_name=jaxspec.SHARD_AXIS), jax.lax.pmean(x, "
            "jaxspec.SHARD_AXIS)."
        )
    elif isinstance(error, _NO_VALUES):
        error.add_note(
            "jaxspec: model_fn and init_fn run when a program is compiled, and their arrays (step, loss, features, "
            "...) have no values then. Instead of a Python `if` write jnp.where or jax.lax.cond; a learning rate that "
            "depends on the step is an optax schedule, or optax.sgd(jnp.where(step > 10, 0.01, 0.1)); to see a value "
            "write jax.debug.print, or hand it to the host: host_call=(fn, [loss]). Under jax.disable_jit() write "
            "jax.lax.stop_gradient(x) for the value of an array that is being differentiated."
        )


def note_model_fn_error(error: Exception, variables: Variables, *, mode: Mode, labels: Batch) -> None:
    """Adds a note to an error of model_fn, which was called with these arguments."""
    from flax import errors

    note_traced_error(error)
    text = str(error)
    missing = (errors.ScopeCollectionNotFound, errors.ScopeVariableNotFoundError, errors.ScopeParamNotFoundError)
    if isinstance(error, errors.ModifyScopeVariableError):
        found = re.search(r'collection "([^"]+)"', text)
        name = found[1] if found else "batch_stats"
        error.add_note(
            "jaxspec: apply changes only the collections that `mutable` names. In TRAIN write out, "
            "updates = module.apply(variables, "
            f'features, mutable=["{name}"]) and train_op=jaxspec.minimize(optimizer, updates=updates); '
            f"in EVAL and PREDICT let "
            "the module not change it (as BatchNorm with use_running_average=True)."
        )
    elif isinstance(error, missing) or _may_be_of_variables(error, variables):
        error.add_note(
            f"jaxspec: the variables that init_fn made have the collections {sorted(variables)}. Let init_fn return "
            "what is missing too, and give module.apply all of the variables: module.apply(variables, ...), of the "
            "module that init_fn made them of."
        )
    elif isinstance(error, errors.InvalidRngError):
        found = re.search(r'PRNG for "([^"]+)"', text)
        error.add_note(
            "jaxspec: give apply the key that model_fn may name: "
            f'module.apply(variables, features, rngs={{"{found[1] if found else "dropout"}": rng}}).'
        )
    elif isinstance(error, errors.CallCompactUnboundModuleError):
        error.add_note(
            "jaxspec: a Flax Module is called through apply, on the variables that model_fn may name: "
            "def model_fn(variables, features, ...): out = module.apply(variables, features)."
        )
    elif labels is None and isinstance(error, _OF_NONE) and _may_come_of_labels(error):
        error.add_note(
            "jaxspec: labels are None in PREDICT. If the error comes from that, return TPUEstimatorSpec(mode, "
            "predictions=...) before they are used."
            if mode == ModeKeys.PREDICT
            else "jaxspec: labels are None here, as input_fn yields features only. If the error comes from that, "
            "let it yield "
            "(features, labels) tuples, or let model_fn do without labels."
        )


def _may_be_of_variables(error: Exception, variables: Variables) -> bool:
    """Whether a KeyError can come from `variables[name]`: they are a local variable of the function that raised it."""
    if not isinstance(error, KeyError) or not error.args or error.args[0] in variables:
        return False
    return any(value is variables for value in _frames(error)[-1].f_locals.values())


def _may_come_of_labels(error: Exception) -> bool:
    """Whether the user's function that failed has one local variable that is None: the labels, or what it got for
    them."""
    frames = _frames(error)
    if _JAXSPEC in frames[-1].f_code.co_filename:  # an error of this library has its own message
        return False
    libraries = (_JAXSPEC, "site-packages")
    users = [f for f in frames if not any(name in f.f_code.co_filename for name in libraries)]
    return bool(users) and sum(value is None for value in users[-1].f_locals.values()) == 1


def _frames(error: Exception) -> list[FrameType]:
    return [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
