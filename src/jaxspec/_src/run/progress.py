"""The progress bar on a terminal: one line with step, loss, rates and time left. Drawn with rich, if it is there."""

import collections
import contextlib
import functools
import io
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_logger = logging.getLogger("jaxspec")
_SECS_BETWEEN_DRAWS = 0.2
_WINDOW_SECS = 5.0
_SHORTEST_BAR, _LONGEST_BAR = 5, 40
_STYLES = {"step": "green", "left": "cyan"}


class ProgressBar:
    """A line at the bottom of the output, drawn over again in place. Made by `open_progress`.

    It is drawn by the threads that call it and has none of its own. Records of the logger `jaxspec`, and those of others
    that come to the handlers of the root logger, appear above it. A terminal that goes away does no harm. It never hides the cursor nor changes the terminal's settings, so there is
    nothing to restore after an error or a kill.
    """

    def __init__(
        self,
        stream: TextIO,
        console: "Console",
        label: str,
        *,
        start: int,
        total: int | None,
        rows_per_step: int | None,
        clock: Callable[[], float],
    ) -> None:
        self._stream, self._console, self._label, self._clock = stream, console, label, clock
        self._total, self._rows = total, rows_per_step
        self._last: tuple[float, int, float | None] = (clock(), start, None)
        self._due = -math.inf
        self._samples: collections.deque[tuple[float, int]] = collections.deque()
        self._rate: float | None = None
        self._lock = threading.RLock()  # reentrant: a signal handler may log while a line is drawn
        self._logging = 0
        self._shown = self._closed = False
        self._handled: list[tuple[logging.Handler, Any]] = []
        self.resume()

    def update(self, step: int, loss: float | None = None) -> None:
        """Tells that `step` steps (or batches) are done. Draws a few times a second, else returns at once.

        Args:
          step: as `total` counts.
          loss: the newest loss, on the host; None: none is shown.
        """
        now = self._clock()
        self._last = (now, step, loss)
        if now >= self._due:
            with self._lock:
                if self._shown:
                    self._due = now + _SECS_BETWEEN_DRAWS
                    self._measure()
                    self._refresh()

    def pause(self) -> None:
        """Erases the line, until `resume`. The time between counts for no rate."""
        with self._lock:
            if self._shown:
                self._remove_filters()
                self._write(self._erasure())
                self._shown = False

    def resume(self) -> None:
        """Shows the line again after `pause`."""
        with self._lock:
            if not self._shown and not self._closed:
                self._shown = True
                self._samples.clear()
                self._add_filters()
                self._refresh()

    def close(self) -> None:
        """Shows the last state and ends the line. The bar cannot be used again; a second close does nothing."""
        with self._lock:
            if self._closed:
                return
            if self._shown:
                self._measure()
            self._shown = True
            self._refresh()
            self._write("\n")
            self._shown, self._closed = False, True
            self._remove_filters()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    # Records appear above the line. Only a filter is called before a handler writes, and nothing after it. So filters,
    # the last ones among those there are, let it write themselves and then reject the record, which has been handled.

    def _add_filters(self) -> None:
        _logger.addFilter(self._log_above)
        # For the other loggers, whose records come to the handlers of the root.
        for handler in logging.getLogger().handlers:
            handled = functools.partial(self._handle_above, handler)
            self._handled.append((handler, handled))
            handler.addFilter(handled)

    def _remove_filters(self) -> None:
        _logger.removeFilter(self._log_above)
        for handler, handled in self._handled:
            handler.removeFilter(handled)
        self._handled.clear()

    def _log_above(self, record: logging.LogRecord) -> bool:
        self._above(functools.partial(_logger.callHandlers, record))
        return False

    def _handle_above(self, handler: logging.Handler, record: logging.LogRecord) -> bool:
        if record.name == _logger.name:
            return True  # it comes from `_log_above`

        def emit() -> None:
            handler.acquire()
            try:
                handler.emit(record)
            finally:
                handler.release()

        self._above(emit)
        return False

    def _above(self, write: Callable[[], None]) -> None:
        """Lets something be written where the line was, and draws it again below."""
        with self._lock:
            self._logging += 1
            if self._shown:
                self._write(self._erasure())
        try:
            write()  # without our lock: handlers have their own
        finally:
            with self._lock:
                self._logging -= 1
                # Making the line takes longer than logging; many records in a row show the same one.
                if self._clock() >= self._due:
                    self._refresh()
                else:
                    self._draw()

    def _measure(self) -> None:
        # Steps count from the first update on, for the time before it went into compilation.
        now, step, _ = self._last
        self._samples.append((now, step))
        while len(self._samples) > 2 and self._samples[1][0] <= now - _WINDOW_SECS:
            self._samples.popleft()
        then, first = self._samples[0]
        if now > then:
            self._rate = (step - first) / (now - then)

    def _refresh(self) -> None:
        self._text = self._line()
        self._draw()

    def _draw(self) -> None:
        if self._shown and not self._logging:
            self._write(self._erasure() + self._text)

    def _parts(self) -> dict[str, str]:
        """What there is to tell, in order, each on its own."""
        _, step, loss = self._last
        parts = {"label": self._label}
        parts["step"] = f"{step}" if self._total is None else f"{step}/{self._total}"
        if loss is not None:
            parts["loss"] = f"loss {loss:.4g}"
        if self._rate is not None:
            parts["steps"] = f"{_short(self._rate)} steps/s"
            if self._rows is not None:
                parts["examples"] = f"{_short(self._rate * self._rows)} examples/s"
            if self._total is not None and self._rate > 0:
                parts["left"] = f"{_duration(max(0, self._total - step) / self._rate)} left"
        return parts

    def _line(self) -> str:
        """The line with its colours; on a narrow terminal some parts are left out."""
        from rich.text import Text

        width = self._columns() - 1  # a character in the last column would wrap on some terminals
        parts = self._parts()
        bar = 0 if self._total is None else _SHORTEST_BAR
        for optional in ("examples", "bar", "steps", "left", "loss"):
            free = width - len(" ".join(parts.values()))
            if free >= (bar and bar + 1):
                break
            if optional == "bar":
                bar = 0
            else:
                parts.pop(optional, None)
        text = Text(parts.pop("label"), overflow="crop")
        if bar:
            text.append(" ").append_text(self._bar(min(free - 1, _LONGEST_BAR)))
        for name, part in parts.items():
            text.append(" ").append(part, _STYLES.get(name, ""))
        text.truncate(width)
        with self._console.capture() as capture:
            self._console.print(text, end="", soft_wrap=True)
        return capture.get()

    def _bar(self, width: int) -> "Text":
        from rich.text import Text

        assert self._total is not None
        step = self._last[1]
        done = int(width * min(1.0, step / self._total)) if self._total > 0 else width
        cell = "━" if (self._stream.encoding or "").lower().startswith("utf") else "-"
        coloured = self._console.color_system is not None and not self._console.no_color
        text = Text(cell * done, "bar.finished" if done == width else "bar.complete")
        return text.append((cell if coloured else " ") * (width - done), "bar.back")

    def _columns(self) -> int:
        # Not rich's own width, which is that of standard input or output.
        with contextlib.suppress(OSError, ValueError):
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        return 80

    def _erasure(self) -> str:
        if self._console.is_dumb_terminal:
            return f"\r{' ' * (self._columns() - 1)}\r"
        return "\r\x1b[2K"

    def _write(self, text: str) -> None:
        # A terminal that hangs up or a stream that is closed must not end the run.
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
            self._stream.flush()


def open_progress(
    label: str,
    *,
    start: int,
    total: int | None,
    rows_per_step: int | None,
    enabled: bool | None,
    stream: TextIO | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> ProgressBar | None:
    """Shows a progress bar, or gives None where there is to be none: off a terminal, or without rich.

    Args:
      label: the first word on the line.
      start: steps done before this run.
      total: the step to reach, of training the global step; None: unknown, so no bar and no time left are shown.
      rows_per_step: examples in a step, for the examples/s; None: unknown.
      enabled: False: no bar. True: a bar on any terminal. None: on any but where `NO_COLOR` is set or `TERM` is "dumb".
      stream: the terminal; None: `sys.stderr`.
      clock: seconds since some start.
    """
    stream = sys.stderr if stream is None else stream
    if enabled is None:
        enabled = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    if not enabled or not _is_terminal(stream):
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    # It only makes the text: what writes must not fail when the terminal goes away.
    console = Console(
        file=io.StringIO(), force_terminal=True, force_jupyter=False, highlight=False, markup=False, emoji=False
    )
    return ProgressBar(stream, console, label, start=start, total=total, rows_per_step=rows_per_step, clock=clock)


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # it is closed
        return False


def _short(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"


def _duration(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
