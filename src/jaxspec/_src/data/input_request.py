"""What one call asks of its input (mode, batch size, limit, position), and the warnings when it gets less."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence

import jax

from jaxspec._src.base.callables import describe
from jaxspec._src.base.types import Clock, InputFn
from jaxspec._src.device.mapping import local_devices_of
from jaxspec._src.spec.mode import ModeKeys

_logger = logging.getLogger("jaxspec")
_LONG_SECS = 60
"""An evaluation of the whole input logs once that it is still running, after this time."""


@dataclasses.dataclass(frozen=True)
class InputRequest:
    """What one call of train, evaluate or predict asks of its input. Numbers of rows are those of this process."""

    input_fn: InputFn
    arguments: Mapping[str, object] = dataclasses.field(default_factory=dict)
    """What input_fn may name, by name."""
    _: dataclasses.KW_ONLY
    mode: str
    """A `ModeKeys` value."""
    devices: Sequence[jax.Device]
    """Those that the batches are for, of all processes."""
    batch_size: int | None
    """The rows of a full batch; None: as many as the first batch has."""
    ragged: bool
    """Whether batches of another size are allowed. They never are in training on several shards."""
    limit: int | None = None
    """The most batches to fetch; None: all."""
    max_programs: int = 16
    """Batches may have so many different shapes, besides the number of their rows."""
    position: str | None = None
    """The position that was saved with the state, as text; None: there is none."""
    resume: bool | None = None
    """None: go on at the position if the input is the one that it came from; True: whatever the input is; False:
    never."""
    step: int = 0
    """The global step that training goes on at."""
    restarted: bool = False
    """Whether the state comes from a checkpoint."""

    @property
    def num_shards(self) -> int:
        """The devices that this process feeds."""
        return len(local_devices_of(self.devices))

    @property
    def name(self) -> str:
        """The name of input_fn, for messages."""
        return describe(self.input_fn)

    @property
    def training(self) -> bool:
        """Whether the batches are trained on. Positions count then, and no other time."""
        return self.mode == ModeKeys.TRAIN


class InputWarnings:
    """Logs the warnings about the batches of one call.

    Args:
      request: what was asked for.
      clock: seconds.
    """

    def __init__(self, request: InputRequest, clock: Clock) -> None:
        self._request, self._clock = request, clock
        self._long_at: float | None = None

    def starts(self) -> None:
        """The first batch is about to be taken."""
        if self._request.mode == ModeKeys.EVAL and self._request.limit is None:
            self._long_at = self._clock() + _LONG_SECS

    def taken(self, count: int) -> None:
        """`count` batches have been taken so far."""
        if self._long_at is None or self._clock() < self._long_at:
            return
        self._long_at = None
        _logger.warning(
            "This evaluation has taken %d batches in %d s and goes on to the end of its input, as steps=None asks for. "
            "If the input repeats for ever, give evaluate (or EvalSpec) "
            "a number of steps, or an input_fn of one epoch.",
            count,
            _LONG_SECS,
        )

    def ended(self, count: int) -> None:
        """The input has ended after `count` batches."""
        request = self._request
        if request.limit is None or count >= request.limit:
            return
        if request.training:
            _logger.warning(
                "The input has ended before the steps or max_steps of train: input_fn (%s) gave %d batches of the %d "
                "that were asked for, and training ends at global step %d. For more, let it repeat: "
                "numpy_input_fn(..., num_epochs=None), or a loop `while True:` in a generator.",
                *(request.name, count, request.limit, request.step + count),
            )
        else:
            _logger.warning(
                "The input has ended before the steps of evaluate: input_fn (%s) gave %d batches of the %d that were "
                "asked for. All of them count. steps=None takes what there is.",
                *(request.name, count, request.limit),
            )


def warn_of_other_input(request: InputRequest, reason: str) -> None:
    """Training goes on, but the saved position is that of another input."""
    _logger.warning(
        "Training goes on at global step %d with an input that is not the one before (%s): input_fn (%s) begins at its "
        "beginning. To go on at the saved position nevertheless, call train(..., resume_input=True); "
        "resume_input=False begins without this warning.",
        *(request.step, reason, request.name),
    )


def warn_of_used_up_input(request: InputRequest) -> None:
    """Training goes on, but the saved position is the end of the input. After a restart that is a surprise."""
    _logger.log(
        logging.WARNING if request.restarted else logging.INFO,
        "The input was used up when its position was saved: input_fn (%s) begins again.",
        request.name,
    )


def warn_of_repeated_input(request: InputRequest, kind: str, *, reports_position: bool) -> None:
    """Training goes on, but an iterator of class `kind` begins at its first batch."""
    why = (
        "no position was saved with the state"
        if reports_position
        else f"a {kind} has no get_state and set_state to go on where it stood, as numpy_input_fn and Grain have, nor "
        "state_dict and load_state_dict, as torchdata's StatefulDataLoader (the loader, not iter(loader)) has"
    )
    _logger.warning(
        "Training goes on at global step %d, but input_fn (%s) begins again at its first batch: %s. "
        "train(..., resume_input=False) says that this is meant.",
        *(request.step, request.name, why),
    )
