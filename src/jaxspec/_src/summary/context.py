"""Where a summary goes that a host function writes, at which step, and whether it is written at all."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jaxspec._src.summary.writer import SummaryWriter

_Condition = bool | Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class _Position:
    """Where the run stands while a host function runs."""

    step: int
    writer: "SummaryWriter"
    """The run's own writer."""
    in_evaluation: bool


_default: contextvars.ContextVar["SummaryWriter | None"] = contextvars.ContextVar(
    "jaxspec_summary_writer", default=None
)
_position: contextvars.ContextVar[_Position | None] = contextvars.ContextVar("jaxspec_summary_position", default=None)
_condition: contextvars.ContextVar[_Condition] = contextvars.ContextVar("jaxspec_summary_record_if", default=True)


@contextlib.contextmanager
def default_writer(writer: "SummaryWriter") -> Iterator[None]:
    """Within it, summaries go to `writer`."""
    token = _default.set(writer)
    try:
        yield
    finally:
        _default.reset(token)


@contextlib.contextmanager
def run_position(step: int, writer: "SummaryWriter", *, in_evaluation: bool = False) -> Iterator[None]:
    """Within it, host functions are at the global step `step` of a run whose own writer is `writer`."""
    token = _position.set(_Position(step, writer, in_evaluation))
    try:
        yield
    finally:
        _position.reset(token)


@contextlib.contextmanager
def record_if(condition: Any) -> Iterator[None]:
    """Within it, `scalar`, `image`, `histogram`, `text` and `host_call` write only if `condition` holds.

    Of nested ones the innermost counts alone.

    Args:
      condition: a bool, or a function without arguments that is asked at every summary. An array, such as `step % 10 == 0`
        of a host tensor with one entry for each shard, counts as one bool if its entries agree.

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


def destination(function: str, name: str, step: Any = None) -> "tuple[SummaryWriter, int] | None":
    """The writer and the global step of a summary; None if it is not to be written.

    Args:
      function: which of the module's functions asks, for errors.
      name: the tag.
      step: as the user gave it; None: that of the run.

    Raises:
      TypeError: if the name is no str.
      ValueError: if there is no writer or no step.
    """
    if not isinstance(name, str):
        raise TypeError(
            f"summary.{function}: the name must be a str, got {type(name).__name__}. The name comes first, then the data."
        )
    condition = _condition.get()
    if condition is not True and not (callable(condition) and _holds(condition())):
        return None
    position, writer = _position.get(), _default.get()
    if writer is None and position is not None:
        writer = position.writer
    if writer is None:
        raise ValueError(
            f"summary.{function}({name!r}): no writer. Write "
            "`with summary.create_file_writer(logdir).as_default():` around it."
        )
    if step is None:
        if position is None:
            raise ValueError(f"summary.{function}({name!r}): no step; outside host_call pass step=.")
        return writer, position.step
    if not isinstance(step, int):
        step = _one_for_all(f"summary.{function}({name!r}): step", step)
    return writer, int(step)


def _holds(condition: Any) -> bool:
    return (
        condition if isinstance(condition, bool) else bool(_one_for_all("summary.record_if: the condition", condition))
    )


def _one_for_all(what: str, value: Any) -> Any:
    """The one value of an array that holds it once for each shard."""
    values = np.unique(np.asarray(value))
    if values.size != 1:
        raise ValueError(
            f"{what} has {np.size(value)} entries, of which these differ: {values[:8].tolist()}; expected one value, or one for "
            "each shard and all equal. Reduce it, for example with .any(), .all() or [0]."
        )
    return values[0]
