"""Notes for errors that come out of model_fn and init_fn: what to write instead, where that is certain."""

import inspect
import itertools
import linecache
import os
import re
import traceback
from collections.abc import Callable, Mapping
from types import CodeType, FrameType, TracebackType
from typing import Any

import jax

from jaxspec._src.step.axis import SHARD_AXIS

_NO_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
_OF_NONE = (TypeError, AttributeError, ValueError)
"""What JAX, NumPy and Python raise for None in the place of an array; not all of them say so."""


def note_traced_error(error: Exception) -> None:
    """Adds what helps to an error of code that is being traced, model_fn or init_fn."""
    if isinstance(error, NameError) and "unbound axis name" in str(error):
        error.add_note(
            f"jaxspec: the axis that is mapped over is called jaxspec.SHARD_AXIS ({SHARD_AXIS!r}), in every mode and on any number "
            "of devices. Write nn.BatchNorm(axis_name=jaxspec.SHARD_AXIS), jax.lax.pmean(x, jaxspec.SHARD_AXIS)."
        )
    elif isinstance(error, _NO_VALUES):
        error.add_note(
            "jaxspec: model_fn and init_fn run when a program is compiled, and their arrays (step, loss, features, ...) have no "
            "values then. Instead of a Python `if` write jnp.where or jax.lax.cond; a learning rate that depends on the step is an "
            "optax schedule, or optax.sgd(jnp.where(step > 10, 0.01, 0.1)); to see a value write jax.debug.print, or hand it "
            "to the host: host_call=(fn, [loss])."
        )


def note_model_fn_error(
    error: Exception, model_fn: Callable[..., Any], variables: Mapping[str, Any], *, mode: str, labels: Any
) -> None:
    """Adds what helps to an error of model_fn."""
    from flax import errors

    note_traced_error(error)
    text = str(error)
    if isinstance(error, errors.ModifyScopeVariableError):
        found = re.search(r'collection "([^"]+)"', text)
        name = found[1] if found else "batch_stats"
        error.add_note(
            f"jaxspec: apply may change a collection only if it is told so. In TRAIN write out, updates = module.apply(variables, "
            f'features, mutable=["{name}"]) and train_op=jaxspec.minimize(optimizer, updates=updates); in EVAL and PREDICT let '
            "the module not change it (as BatchNorm with use_running_average=True)."
        )
    elif isinstance(
        error, errors.ScopeCollectionNotFound | errors.ScopeVariableNotFoundError | errors.ScopeParamNotFoundError
    ) or (isinstance(error, KeyError) and _missing_in(variables, error)):
        error.add_note(
            f"jaxspec: the variables that init_fn made have the collections {sorted(variables)}. Let init_fn return what is missing "
            "too, and give module.apply all of the variables: module.apply(variables, ...), of the module that init_fn made them of."
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
    elif labels is None and isinstance(error, _OF_NONE) and _uses_labels(error, model_fn):
        error.add_note(
            "jaxspec: labels are None in PREDICT: return TPUEstimatorSpec(mode, predictions=...) before they are used."
            if mode == "infer"
            else "jaxspec: labels are None here, as input_fn yields features only: let it yield (features, labels) tuples, or let "
            "model_fn do without labels."
        )


def _missing_in(variables: Mapping[str, Any], error: KeyError) -> bool:
    if not error.args or error.args[0] in variables:
        return False
    # The dict that was asked is not part of the exception; the line that asked is.
    line = traceback.extract_tb(error.__traceback__)[-1].line or ""
    return re.search(rf"\bvariables\s*\[\s*['\"]{re.escape(str(error.args[0]))}['\"]", line) is not None


def _uses_labels(error: Exception, model_fn: Callable[..., Any]) -> bool:
    """Whether the innermost expression of the user's that failed uses model_fn's labels, and nothing else that is None."""
    code = getattr(inspect.unwrap(getattr(model_fn, "func", model_fn)), "__code__", None)
    uses = False
    inside = False
    for frame, tb in _frames(error.__traceback__):
        inside = inside or frame.f_code is code
        if not inside or _is_library(frame.f_code):
            continue
        names = set(re.findall(r"\b[^\W\d]\w*", _expression(tb, frame.f_code)))
        none = {name for name in names if name in frame.f_locals and frame.f_locals[name] is None}
        # In a function that model_fn calls, labels are an argument, of whatever name.
        passed = {"labels", *(inspect.getargs(frame.f_code).args if uses and frame.f_code is not code else ())}
        uses = bool(none) and none <= passed
    return uses


def _frames(tb: TracebackType | None) -> list[tuple[FrameType, TracebackType]]:
    frames = []
    while tb is not None:
        frames.append((tb.tb_frame, tb))
        tb = tb.tb_next
    return frames


def _is_library(code: CodeType) -> bool:
    return "site-packages" in code.co_filename or os.path.dirname(os.path.dirname(__file__)) in code.co_filename


def _expression(tb: TracebackType, code: CodeType) -> str:
    """The source of the expression at which a frame stands."""
    first, last, begin, end = next(itertools.islice(code.co_positions(), tb.tb_lasti // 2, None))
    if first is None or last is None or begin is None or end is None:
        return ""
    lines = [linecache.getline(code.co_filename, number) for number in range(first, last + 1)]
    lines[-1] = lines[-1].encode()[:end].decode(errors="ignore")
    lines[0] = lines[0].encode()[begin:].decode(errors="ignore")
    return "".join(lines)
