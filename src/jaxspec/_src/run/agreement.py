"""What the processes of a training agree on before each loop and each dispatch: how long it is, and whether it is."""

import logging
from typing import NamedTuple

from jaxspec._src.device.processes import Exchange
from jaxspec._src.run.signals import StopRequest

_logger = logging.getLogger("jaxspec")


class _Wish(NamedTuple):
    """What one process says."""

    steps: int
    """The most steps that it can do next; 0: none."""
    ended: bool
    """Whether its input has ended."""
    diverged: bool
    """Whether it has seen a NaN loss."""
    signum: int | None
    """The signal that it got."""
    shapes: str = ""
    """Those of the arrays that it would dispatch."""


class Agreement:
    """Makes the processes of one training run the same steps, and end at the same step.

    Args:
      exchange: of the run.
      interrupt: set by a signal of this process, and here by one of another process.
    """

    def __init__(self, exchange: Exchange, interrupt: StopRequest) -> None:
        self._exchange, self._interrupt = exchange, interrupt
        self.input_ended = False
        """Whether the input of some process has ended."""
        self.diverged = False
        """Whether some process has seen a NaN loss. The others find it in what they have not looked at yet."""

    def loop_steps(self, step: int, steps: int, *, diverged: bool) -> int:
        """The steps of the loop that begins at the global step `step`: the fewest that a process asks for."""
        return self._agree("loop", step, _Wish(steps, False, diverged, self._interrupt.signum))

    @property
    def compares_shapes(self) -> bool:
        """Whether there are other processes, whose batches must have the same shapes."""
        return self._exchange.count > 1

    def dispatch_steps(self, step: int, ready: int, *, ended: bool, diverged: bool, shapes: str = "") -> int:
        """The steps of the dispatch at the global step `step`: for so many, each process has batches ready.

        Args:
          ready: the batches of this process.
          ended: whether its input has ended.
          shapes: those of the batches that are ready, if `compares_shapes`.

        Raises:
          ValueError: in all processes, if their batches have different shapes.
        """
        return self._agree("dispatch", step, _Wish(ready, ended, diverged, self._interrupt.signum, shapes))

    def _agree(self, what: str, step: int, mine: _Wish) -> int:
        self._exchange.place = f"in training, at global step {step}"
        wishes = self._exchange.gather(what, mine)
        signum = next((wish.signum for wish in wishes if wish.signum is not None), None)
        if signum is not None and self._interrupt.signum is None:
            self._interrupt.heard(signum)
        ended = [process for process, wish in enumerate(wishes) if wish.ended]
        if ended and not mine.ended:
            _logger.warning(
                "Training ends at step %d, because the input of process %d has ended. That of process %d has not: give "
                "all processes the same number of batches.",
                *(step, ended[0], self._exchange.index),
            )
        self.input_ended = bool(ended)
        self.diverged = any(wish.diverged for wish in wishes)
        steps = min(wish.steps for wish in wishes)
        if steps and len({wish.shapes for wish in wishes}) > 1:
            shown = "; ".join(f"process {process}: {wish.shapes}" for process, wish in enumerate(wishes))
            raise ValueError(
                f"at global step {step} the processes have batches of different shapes ({shown}). A step needs the "
                "same shapes in all of them: choose the length that batches are padded to from the global batch."
            )
        return steps
