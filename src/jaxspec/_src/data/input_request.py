"""What one call of train, evaluate or predict asks of its input."""

import dataclasses
from collections.abc import Mapping

from jaxspec._src.base.callables import describe
from jaxspec._src.base.types import InputFn
from jaxspec._src.spec.mode import ModeKeys


@dataclasses.dataclass(frozen=True)
class InputRequest:
    """What one call of train, evaluate or predict asks of its input. Numbers of rows are those of this process."""

    input_fn: InputFn
    arguments: Mapping[str, object] = dataclasses.field(default_factory=dict)
    """What input_fn may name, by name."""
    _: dataclasses.KW_ONLY
    mode: str
    """A `ModeKeys` value."""
    num_shards: int
    """The devices that this process feeds."""
    batch_size: int | None
    """The rows of a full batch; None: as many as the first batch has."""
    ragged: bool
    """Whether batches of another size are allowed. They never are in training on several shards."""
    limit: int | None = None
    """The most batches to fetch; None: all."""
    position: str | None = None
    """The position that was saved with the state, as text; None: there is none."""
    resume: bool | None = None
    """None: go on at the position if the input is the one that it came from; True: whatever the input is; False: never."""
    step: int = 0
    """The global step that training goes on at."""
    restarted: bool = False
    """Whether the state comes from a checkpoint."""

    @property
    def name(self) -> str:
        """The name of input_fn, for messages."""
        return describe(self.input_fn)

    @property
    def training(self) -> bool:
        """Whether the batches are trained on. Positions count then, and no other time."""
        return self.mode == ModeKeys.TRAIN
