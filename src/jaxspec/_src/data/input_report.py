"""What is told of an input while it is read."""

import logging
from collections.abc import Callable

from jaxspec._src.spec.mode import ModeKeys

_logger = logging.getLogger("jaxspec")
_LONG_SECS = 60
"""After so long an evaluation of all batches says that it is still under way."""


class InputReport:
    """Warns of an input that ends too early, and of an evaluation that may never end.

    Args:
      name: of input_fn.
      mode: a `ModeKeys` value.
      limit: the batches that were asked for; None: all.
      step: the global step that training goes on at.
      clock: seconds.
    """

    def __init__(self, name: str, *, mode: str, limit: int | None, step: int, clock: Callable[[], float]) -> None:
        self._name, self._mode, self._limit, self._step, self._clock = name, mode, limit, step, clock
        self._long_at: float | None = None
        self._has_ended = False

    def start(self) -> None:
        """The first batch is about to be taken."""
        if self._mode == ModeKeys.EVAL and self._limit is None:
            self._long_at = self._clock() + _LONG_SECS

    def taken(self, count: int) -> None:
        """`count` batches were taken so far."""
        if self._long_at is None or self._clock() < self._long_at:
            return
        self._long_at = None
        _logger.warning(
            "This evaluation has taken %d batches in %d s and goes on to the end of its input, as steps=None asks for. If the "
            "input repeats for ever, give evaluate (or EvalSpec) a number of steps, or an input_fn of one epoch.",
            count,
            _LONG_SECS,
        )

    def ended(self, count: int) -> None:
        """The input has ended after `count` batches."""
        if self._has_ended or self._limit is None or count >= self._limit:
            return
        self._has_ended = True
        if self._mode == ModeKeys.TRAIN:
            _logger.warning(
                "The input has ended before the steps or max_steps of train: input_fn (%s) gave %d batches of the %d that were asked "
                "for, and training ends at global step %d. For more, let it repeat: numpy_input_fn(..., num_epochs=None), or a loop "
                "`while True:` in a generator.",
                *(self._name, count, self._limit, self._step + count),
            )
        else:
            _logger.warning(
                "The input has ended before the steps of evaluate: input_fn (%s) gave %d batches of the %d that were asked for. All "
                "of them count. steps=None takes what there is.",
                *(self._name, count, self._limit),
            )
