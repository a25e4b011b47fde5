"""The context variables behind `summary.scalar` and the others: the writer, the step, `record_if`."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from jaxspec._src.base.arrays import describe_array, is_tracer
from jaxspec._src.summary.writer import SummaryWriter, default_writer

Condition: TypeAlias = ArrayLike | Callable[[], ArrayLike]
"""A bool, an array of equal bools, or a function that returns one of these."""


class Position(NamedTuple):
    """Where a summary goes: for a host function that runs, its step and the run's own writer."""

    step: int
    writer: SummaryWriter
    in_evaluation: bool = False


_position: contextvars.ContextVar[Position | None] = contextvars.ContextVar("jaxspec_summary_position", default=None)
_condition: contextvars.ContextVar[bool | Callable[[], ArrayLike]] = contextvars.ContextVar(
    "jaxspec_summary_record_if", default=True
)


@contextlib.contextmanager
def run_position(step: int, writer: SummaryWriter, *, in_evaluation: bool = False) -> Iterator[None]:
    """Within it, host functions are at the global step `step` of a run whose own writer is `writer`."""
    token = _position.set(Position(step, writer, in_evaluation))
    try:
        yield
    finally:
        _position.reset(token)


@contextlib.contextmanager
def record_if(condition: Condition) -> Iterator[None]:
    """Within it, `scalar`, `image`, `histogram`, `text` and `host_call` write only if `condition` holds.

    Of nested ones only the innermost counts.

    Args:
      condition: a bool, or a function without arguments that is called at every summary. An array, such as
        `step % 10 == 0` of a host tensor with one entry for each shard, counts as one bool if its entries agree.

    Raises:
      ValueError: if the entries do not agree, or there are none.
    """
    token = _condition.set(condition if callable(condition) else _holds(condition))
    try:
        yield
    finally:
        _condition.reset(token)


def in_evaluation() -> bool:
    """Whether a host function of an evaluation is running."""
    position = _position.get()
    return position is not None and position.in_evaluation


def destination(
    function: str, *names: str, data: ArrayLike | None = None, step: ArrayLike | None = None
) -> Position | None:
    """The global step and the writer of a summary; None if it is not to be written. The writer notes the tags.

    Args:
      function: the name of the public function, for errors.
      names: the tags.
      data: what is to be written.
      step: as the user gave it; None: that of the run.

    Raises:
      TypeError: if a name is not a str, or the data are an array of a model_fn that is being traced.
      ValueError: if there is no writer or no step.
    """
    for name in names:
        if not isinstance(name, str):
            raise TypeError(
                f"summary.{function}: the name must be a str, got {type(name).__name__}. The name comes first, then "
                "the data."
            )
    if is_tracer(data):
        raise TypeError(
            f"summary.{function}({names[0]!r}): got {describe_array(data)} of a model_fn that is being traced; "
            "summaries are written on the host. Pass it: host_call=(fn, [tensor]) and write it in fn, or "
            "host_call=summary.host_call(...)."
        )
    condition = _condition.get()
    if condition is not True and not (callable(condition) and _holds(condition())):
        return None
    position, writer = _position.get(), default_writer.get()
    # Code from TensorFlow opens the writer of model_dir itself. It means the run, whose writer has the sinks, too.
    if position is not None and (writer is None or writer.logdir == position.writer.logdir):
        writer = position.writer
    call = f"summary.{function}({', '.join(names)!r})"
    if writer is None:
        raise ValueError(f"{call}: no writer. Write `with summary.create_file_writer(logdir).as_default():` around it.")
    if step is None:
        if position is None:
            raise ValueError(f"{call}: no step; outside host_call pass step=.")
        step = position.step
    elif not isinstance(step, int):
        step = int(_one_for_all(f"{call}: step", step))
    writer.user_tags.update(names)
    return Position(step, writer)


def _holds(condition: ArrayLike) -> bool:
    if isinstance(condition, bool):
        return condition
    return bool(_one_for_all("summary.record_if: the condition", condition))


def _one_for_all(what: str, value: ArrayLike) -> np.generic:
    """The one value of an array that holds it once for each shard."""
    values = np.unique(np.asarray(value))
    if values.size != 1:
        raise ValueError(
            f"{what} has {np.size(value)} entries, of which these differ: {values[:8].tolist()}; expected one value, "
            "or one for each shard and all equal. Reduce it, for example with .any(), .all() or [0]."
        )
    one: np.generic = values[0]
    return one
