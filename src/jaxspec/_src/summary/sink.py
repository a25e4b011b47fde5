"""Sink: what to implement for a writer of your own (`RunConfig(writers=...)`)."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

_METHODS = ("scalar", "text", "image", "histogram", "flush")


class Sink(Protocol):
    """A destination of summaries: your own writer for Weights & Biases, MLflow, CLU or a database.

    Pass instances to `RunConfig(writers=[...])`. All methods run on the host. Two threads may call at the same time:
    the one that trains, and the one that runs host_call.

    `name` is the tag: `loss`, `global_step/sec`, or the name that a host function gave. The tags of an evaluation begin
    with the name of its directory: `eval/loss`, or `eval_NAME/loss` for `evaluate(name="NAME")`.

    `step` is a global step. The steps do not always ascend: host_call writes at the step before an update, counted from
    0, the loss of that update is written at the number of updates made, and a user may pass any step.
    """

    def scalar(self, name: str, value: float, step: int) -> None:
        """Writes one number, which may be infinite or NaN."""

    def text(self, name: str, text: str, step: int) -> None:
        """Writes a string, which may be Markdown."""

    def image(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Writes one image: uint8 `[height, width, channels]`, 0 to 255, with 1 (grey), 3 (RGB) or 4 (RGBA)
        channels."""

    def histogram(self, name: str, values: np.ndarray, step: int) -> None:
        """Writes the distribution of values: float64 `[n]`, n >= 1, all of them finite."""

    def flush(self) -> None:
        """Makes what was written visible to readers. Called when train and evaluate end, also with an error."""


def check_sinks(name: str, sinks: object) -> tuple[Sink, ...]:
    """The sinks as a tuple; TypeError for a value that is not a sequence of them."""
    expected = f"a writer has the methods {', '.join(_METHODS)}: see jaxspec.summary.Sink"
    if not isinstance(sinks, Sequence) or isinstance(sinks, str):
        raise TypeError(f"{name} must be a list, given: {sinks!r}. Write [writer]; {expected}.")
    for number, sink in enumerate(sinks):
        missing = [method for method in _METHODS if not callable(getattr(sink, method, None))]
        if missing or isinstance(sink, type):
            wrong = f"without {', '.join(missing)}" if missing else "a class, not an instance"
            raise TypeError(f"{name}[{number}] is {sink!r}, {wrong}; {expected}.")
    return tuple(sinks)
