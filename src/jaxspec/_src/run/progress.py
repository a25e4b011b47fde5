"""The progress bar of train, evaluate and predict, drawn by tqdm on a terminal or in a notebook."""

import contextlib
import functools
import logging
import os
import sys
from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from jaxspec._src.hooks.rates import Compute, flops_rates

if TYPE_CHECKING:
    from typing import Never

    Tqdm = tqdm[Never]  # it is generic for the type checker only
else:
    Tqdm = tqdm


class ProgressBar(Tqdm):
    """One line with the step, the time, the rates and the loss. Log records appear above it.

    The threads that call it draw it. A terminal that hangs up, or a stream that is closed, does no harm.

    Args:
      label: the first word of the line.
      start: steps (or batches) done before this run.
      total: the step to reach; None: unknown, so neither a bar nor the time left is shown.
      batch_size: examples in a step, for the examples per second; None: unknown.
    """

    monitor_interval = 0  # no thread

    def __init__(self, label: str, *, start: int, total: int | None, batch_size: int | None) -> None:
        self._batch_size = batch_size
        self._loss: float | None = None
        self._compute: Compute | None = None
        self._started = self._paused = False
        self._wrapped_handlers = contextlib.ExitStack()
        # `position`: a bar within another one takes its line. `miniters`: the time alone decides when to draw.
        super().__init__(
            desc=label, initial=start, total=total, unit="step", dynamic_ncols=True, position=0, miniters=1
        )
        self._wrap_log_handlers()

    def show(self, step: int, loss: float | None = None, compute: Compute | None = None) -> None:
        """Shows that `step` steps are done. Draws some times a second, else returns at once.

        Args:
          step: as `total` counts.
          loss: the newest loss, on the host; None: none is shown.
          compute: for the FLOP/s, which are shown where the peak is known.
        """
        self._loss, self._compute = loss, compute
        if self.disable:
            self.n = step
        elif self._started:
            self.update(step - self.n)
        else:
            # The time before the first step went into compilation.
            self._started, self.n, self.initial = True, step, step
            self._restart()

    def pause(self) -> None:
        """Erases the line, until `resume`. The time between counts for no rate."""
        if not self.disable:
            self.clear()
            self._paused = self.disable = True
            self._wrapped_handlers.close()

    def resume(self) -> None:
        """Shows the line again after `pause`."""
        if self._paused:
            self._paused = self.disable = False
            self._restart()
            self._wrap_log_handlers()

    def close(self) -> None:
        """Shows the last state and ends the line. The bar cannot be used again; a second close does nothing."""
        if self._paused or not self.disable:
            self._paused = self.disable = False
            super().close()
            self._wrapped_handlers.close()

    @property
    def format_dict(self) -> MutableMapping[str, object]:
        """What tqdm shows, with the loss, the examples per second and the FLOP/s."""
        values = super().format_dict
        parts = [] if self._loss is None else [f"loss={self._loss:.4g}"]
        done, seconds = self.n - self.initial, values["elapsed"]
        rate = values["rate"] or (done / seconds if seconds else 0)
        if rate and self._batch_size is not None:
            parts.append(f"{self.format_sizeof(rate * self._batch_size)} examples/s")
        flops_per_sec, mfu = flops_rates(self._compute, rate)
        if flops_per_sec and mfu is not None:
            parts.append(f"{self.format_sizeof(flops_per_sec)}FLOP/s, {mfu:.0%} MFU")
        return {**values, "postfix": ", ".join(parts)}

    def _restart(self) -> None:
        """Draws the line, and lets the rates count from here on."""
        self.last_print_n = self.n
        self.unpause()
        self.refresh()

    def _wrap_log_handlers(self) -> None:
        """Lets log records appear above the line, whichever handler writes them.

        `tqdm.contrib.logging` would do so for the first console handler alone, and ignore its level.
        """
        if self.disable:
            return  # by the environment variable TQDM_DISABLE
        for handler in {*logging.getLogger("jaxspec").handlers, *logging.getLogger().handlers, logging.lastResort}:
            if handler is not None:
                vars(handler)["handle"] = functools.partial(self._write_above, handler.handle)
                self._wrapped_handlers.callback(vars(handler).pop, "handle", None)

    def _write_above(self, handle: Callable[[logging.LogRecord], object], record: logging.LogRecord) -> object:
        with self.external_write_mode(self.fp):
            return handle(record)


def open_progress(
    label: str, *, start: int, total: int | None, batch_size: int | None, enabled: bool | None
) -> ProgressBar | None:
    """Shows a progress bar on standard error, or returns None where that is neither a terminal nor in a notebook.

    Args:
      enabled: False: no bar. None: a bar, except where `NO_COLOR` is set or `TERM` is "dumb". True: also there.
    """
    if enabled is None:
        enabled = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    if not enabled or not (_is_terminal() or "ipykernel.zmqshell" in sys.modules):
        return None
    return ProgressBar(label, start=start, total=total, batch_size=batch_size)


def _is_terminal() -> bool:
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # it is closed
        return False
