"""Goodput: which share of its time a training spends on steps, and on what keeps it from them."""

import collections
import contextlib
import logging
from collections.abc import Iterator, Mapping

from jaxspec._src.base.activities import SPENT, TimeSpent
from jaxspec._src.base.types import Clock
from jaxspec._src.summary.writer import SummaryWriter

_logger = logging.getLogger("jaxspec")
_INTERVAL_SECS = 30.0
"""The shares are those of the loops of at least so many seconds."""
_SLOW_INPUT = 0.25
"""An input that takes a larger share of an interval is worth a warning."""
_START_UP = "start-up"
_PARTS = {
    "the input": "input",
    "host_call": "host_call",
    "the checkpoint": "checkpoints",
    "hook ": "hooks",
    "compilation": "compilation",
    "process ": "other processes",
    "the weights to start from": _START_UP,
    _START_UP: _START_UP,
}
"""How the activities begin (see `doing`), and the part of the time they belong to. Anything else is "steps"."""


class Goodput:
    """Divides the time of one call of train. Only what its own thread waits for counts: what others do costs nothing.

    Evaluations and predictions in between do not count. The shares go to the summaries every 30 seconds, from the
    second loop on, as `goodput/steps`, `goodput/input` and so on. A slow input is a warning, once.

    Args:
      clock: seconds of training. The time begins when this is made.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock, self._spent, self._began = clock, TimeSpent(clock), clock()
        self._writer: SummaryWriter | None = None
        self._mark: tuple[int, float, Mapping[str, float]] | None = None
        """The global step, the time and the parts at the beginning of the interval."""
        self._has_warned = False

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        """Around the training."""
        token = SPENT.set(self._spent)
        try:
            yield
        finally:
            SPENT.reset(token)

    def starts_up(self) -> None:
        """What comes now, until the first loop, is no step: the state is read or made, and model_fn is traced."""
        self._spent.begin(_START_UP)

    def starts_loops(self, writer: SummaryWriter | None) -> None:
        """The loops begin.

        Args:
          writer: of the run; None: there are no summaries.
        """
        self._spent.begin("")
        self._writer, self._mark = writer, None

    def loop_ended(self, step: int) -> None:
        """Writes the shares, and warns of a slow input, if the interval has ended: after a loop up to a global step."""
        now = self._clock()
        if self._mark is None:  # the first loop compiles
            self._mark = step, now, self._parts()
            return
        first_step, began, before = self._mark
        if (seconds := now - began) < _INTERVAL_SECS:
            return
        parts = self._parts()
        self._mark = step, now, parts
        shares = {part: (spent - before.get(part, 0.0)) / seconds for part, spent in parts.items()}
        if self._writer is not None:
            for part, share in shares.items():
                if part != _START_UP:
                    self._writer.scalar(f"goodput/{part.replace(' ', '_')}", share, step)
        if (slow := shares.get("input", 0.0)) > _SLOW_INPUT and not self._has_warned:
            self._has_warned = True
            of_step = seconds / (step - first_step)
            _logger.warning(
                "The input takes %.0f%% of each step, %.3g of %.3g s (steps %d to %d): the devices have nothing to do "
                "meanwhile. Make input_fn faster: let a loader with workers (Grain, torch, tf.data) prepare the "
                "batches, do less for each of them, or give arrays that fit into memory to "
                "jaxspec.inputs.numpy_input_fn. This warning comes once.",
                *(100 * slow, slow * of_step, of_step, first_step, step - 1),
            )

    def describe(self) -> str:
        """The whole time so far, such as `3.2 s: 71% steps, 20% input, 9% compilation`, the largest part first."""
        seconds, parts = self._clock() - self._began, self._parts()
        shares = {part: spent / seconds if seconds else 0.0 for part, spent in parts.items()}
        listed = sorted(shares.items(), key=lambda item: -item[1])
        return f"{seconds:.1f} s: " + ", ".join(f"{share:.0%} {part}" for part, share in listed if share >= 0.005)

    def _parts(self) -> Mapping[str, float]:
        """The seconds so far of each part."""
        parts: dict[str, float] = collections.defaultdict(float)
        for activity, seconds in self._spent.seconds().items():
            parts[next((part for start, part in _PARTS.items() if activity.startswith(start)), "steps")] += seconds
        return parts
