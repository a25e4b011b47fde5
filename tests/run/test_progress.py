"""The progress bar under a real pseudo-terminal, and what its bytes make of the screen; and in a notebook."""

import contextlib
import fcntl
import io
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import tty

import absl.logging
import pytest
from tiny_models import batches, data, linear_init, linear_model_fn

import jaxspec as js
from jaxspec._src.run.progress import open_progress


class Clock:
    """Time that the test moves."""

    def __init__(self):
        self.now = 128.0

    def __call__(self):
        return self.now


class Terminal:
    """A pseudo-terminal: `stream` writes to it, `written` is all that arrived, `lines` is what a screen shows."""

    def __init__(self, columns, encoding="utf-8"):
        self._master, slave = pty.openpty()
        tty.setraw(slave)
        os.set_blocking(self._master, False)
        self.resize(columns)
        self._bytes = b""
        self.stream = _Stream(os.fdopen(slave, "wb", 0), encoding=encoding, write_through=True)
        self.stream.flushed = self.written

    def resize(self, columns):
        self.columns = columns
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def written(self):
        while self._master is not None:
            try:
                self._bytes += os.read(self._master, 1 << 16)
            except OSError:  # nothing more
                break
        return self._bytes.decode()

    def lines(self):
        return screen(self.written(), self.columns)

    def line(self):
        (line,) = self.lines()
        return line

    def hang_up(self):
        os.close(self._master)
        self._master = None

    def close(self):
        if self._master is not None:
            self.hang_up()
        with contextlib.suppress(OSError):
            self.stream.close()


class _Stream(io.TextIOWrapper):
    """Has what it writes read at once: the terminal holds a few kilobytes, then writing waits for a reader."""

    def flush(self):
        super().flush()
        self.flushed()


def screen(text, columns):
    """The lines that the bytes leave behind. Knows return and newline, and nothing else."""
    lines, column = [""], 0
    for token in text:
        if token == "\r":
            column = 0
        elif token == "\n":
            lines.append("")
            column = 0
        else:
            assert token != "\x1b", "an escape sequence"
            assert column < columns, f"the line wraps: {lines[-1]!r}"
            lines[-1] = lines[-1].ljust(column)[:column] + token + lines[-1][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("NO_COLOR", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.fixture
def terminal():
    terminal = Terminal(120)
    yield terminal
    terminal.close()


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("tqdm.std.time", clock)
    return clock


@pytest.fixture
def console(terminal):
    """Adds log handlers that write to the terminal."""
    added = []

    def console(name=None):
        handler, logger = logging.StreamHandler(terminal.stream), logging.getLogger(name)
        added.append((logger, handler))
        logger.addHandler(handler)
        return handler

    yield console
    for logger, handler in added:
        logger.removeHandler(handler)


@pytest.fixture
def open_bar(terminal, clock, console, monkeypatch):
    """Opens bars, with the terminal as standard error. All are closed at the end, for they wrap log handlers."""
    bars = []

    def open_bar(label="train", stream=terminal.stream, **options):
        monkeypatch.setattr(sys, "stderr", stream)
        bar = open_progress(label, **{"start": 0, "total": 1000, "batch_size": 32, "enabled": None} | options)
        if bar is not None:
            bars.append(bar)
        return bar

    yield open_bar
    for bar in bars:
        bar.close()
    handlers = [logging.lastResort, *logging.getLogger().handlers, *logging.getLogger("jaxspec").handlers]
    assert not any("handle" in vars(handler) for handler in handlers)


def advance(bar, clock, steps, secs, loss=0.12345):
    """A step every `secs` seconds."""
    for step in steps:
        clock.now += secs
        bar.show(step, loss)


def test_shows_where_the_run_stands(open_bar, terminal, clock):
    bar = open_bar()
    assert re.fullmatch(r"train: +0%\| +\| 0/1000 \[00:00<\?, \?step/s\]", terminal.line())
    clock.now += 64  # compilation
    advance(bar, clock, range(1, 202), 0.125)
    shown = r"train:  20%\|█+.? +\| 201/1000 \[00:25<01:39, +8\.00step/s, loss=0\.1235, 256 examples/s\]"
    assert re.fullmatch(shown, terminal.line()), terminal.line()


class Chips:
    """A step has 10 GFLOP, of devices with a peak of 160 GFLOP/s."""

    flops_per_step, peak_flops_per_sec = 10e9, 160e9


@pytest.mark.parametrize(("peak", "shown"), [(160e9, ", 80.0GFLOP/s, 50% MFU]"), (None, "256 examples/s]")])
def test_shows_the_flops_where_the_peak_is_known(open_bar, terminal, clock, monkeypatch, peak, shown):
    monkeypatch.setattr(Chips, "peak_flops_per_sec", peak)
    bar = open_bar()
    for step in range(1, 20):
        clock.now += 0.125
        bar.show(step, 0.5, Chips())
    assert terminal.line().endswith(shown), terminal.line()


def test_the_bar_fills(open_bar, terminal, clock):
    def filled():
        return terminal.line().count("█")

    bar = open_bar()
    advance(bar, clock, [1, 250], 1)
    quarter = filled()
    advance(bar, clock, [500], 1)
    assert 2 <= quarter < filled()
    half = filled()
    advance(bar, clock, [1000], 1)
    assert half < filled()


def test_one_line_and_no_flood(open_bar, terminal, clock):
    bar = open_bar()
    advance(bar, clock, range(1, 10_001), 0.001)
    text = terminal.written()
    assert "\n" not in text
    assert 80 <= text.count("train") <= 110  # ten seconds at ten a second
    bar.close()
    assert terminal.written().count("\n") == 1
    assert terminal.written().endswith("\n")


def test_the_last_state_stays_when_the_bar_closes(open_bar, terminal, clock):
    with open_bar(total=7) as bar:
        advance(bar, clock, range(1, 8), 1 / 64)
        assert " 1/7 " in terminal.line()
    line, after = terminal.lines()
    assert " 7/7 [00:00<00:00, 64.00step/s, loss=0.1235, 2.05k examples/s]" in line
    assert after == ""
    bar.close()
    bar.show(8)
    bar.pause()
    bar.resume()
    assert terminal.lines() == [line, ""]


def test_an_error_leaves_a_usable_terminal(open_bar, terminal, clock):
    before = termios.tcgetattr(terminal.stream)

    def run():
        with open_bar() as bar:
            advance(bar, clock, [1, 2], 1)
            raise RuntimeError("in the run")

    with pytest.raises(RuntimeError, match="in the run"):
        run()
    assert terminal.written().endswith("\n")
    assert termios.tcgetattr(terminal.stream) == before
    # Neither colours nor a hidden cursor: even a kill leaves nothing behind.
    assert "\x1b" not in terminal.written()


def test_rates_are_of_the_last_updates(open_bar, terminal, clock):
    bar = open_bar(total=100_000)
    advance(bar, clock, range(1, 101), 0.01)
    advance(bar, clock, range(101, 131), 2)
    assert terminal.line().endswith(" 2.00s/step, loss=0.1235, 16.0 examples/s]")


def test_a_slow_step_is_measured_from_the_one_before(open_bar, terminal, clock):
    bar = open_bar(total=2000, batch_size=None)
    advance(bar, clock, [1000, 1100, 1200], 32)
    assert terminal.line().endswith(" 1200/2000 [01:04<04:16,  3.12step/s, loss=0.1235]")


@pytest.mark.parametrize(
    ("steps", "shown"), [([1, 2], "<2:46:38, "), ([1, 1], "<?, ?step/s"), ([1, 20_000], ": 20000step [00:01, 199")]
)
def test_time_left(open_bar, terminal, clock, steps, shown):
    advance(open_bar(total=10_000, batch_size=None), clock, steps, 1)
    assert shown in terminal.line()


def test_without_a_total_there_is_neither_bar_nor_time_left(open_bar, terminal, clock):
    bar = open_bar("evaluate", total=None)
    advance(bar, clock, [1, 2], 1, loss=None)
    assert terminal.line() == "evaluate: 2step [00:01,  1.00step/s, 32.0 examples/s]"


def test_a_resumed_run_begins_where_it_stood(open_bar, terminal):
    open_bar(start=500)
    assert " 500/1000 " in terminal.line()


def test_nothing_to_do(open_bar, terminal):
    open_bar(total=0).close()
    assert terminal.lines()[0] == "train: 0step [00:00, ?step/s]"


@pytest.mark.parametrize("columns", [120, 80, 60, 20, 9, 2])
@pytest.mark.parametrize("total", [1000, None])
def test_the_line_is_cut_on_a_narrow_terminal(open_bar, terminal, clock, columns, total):
    terminal.resize(columns)
    advance(open_bar(total=total), clock, [1, 2], 1)
    assert terminal.line().startswith("train:"[: columns - 1])


def test_follows_the_width_of_the_terminal(open_bar, terminal, clock):
    terminal.resize(20)
    bar = open_bar()
    terminal.resize(100)
    advance(bar, clock, [1, 2], 1)
    assert len(terminal.line()) == 99


def test_a_terminal_that_does_not_know_its_width_has_little_more_than_the_numbers(open_bar, terminal, clock):
    terminal.resize(0)
    advance(open_bar(), clock, [1, 2], 1)
    terminal.columns = 80
    assert terminal.line().startswith("train:   0%| | 2/1000 [00:01<16:38, ")


def test_ascii_where_the_encoding_knows_no_more(open_bar, clock):
    terminal = Terminal(120, encoding="ascii")
    bar = open_bar(stream=terminal.stream)
    advance(bar, clock, [1, 500], 1)
    assert re.match(r"train:  50%\|#+ +\| 500/1000 ", terminal.line())
    bar.close()
    terminal.close()


# Log records.


def test_log_records_have_their_own_line(open_bar, terminal, clock, console, caplog):
    logger = logging.getLogger("jaxspec")
    console()
    console("jaxspec")
    bar = open_bar()
    advance(bar, clock, [1], 1)
    with caplog.at_level("INFO", "jaxspec"):
        logger.info("Saving checkpoint for %d", 1)
    *above, line = terminal.lines()
    assert above == ["Saving checkpoint for 1"] * 2
    assert " 1/1000 " in line  # at once: the next step may take long
    with caplog.at_level("WARNING", "jaxspec"):
        logger.info("below the level")
    assert caplog.messages == ["Saving checkpoint for 1"]
    bar.close()
    logger.error("after")
    *_, one, two, last = terminal.lines()
    assert (one, two, last) == ("after", "after", "")
    assert terminal.written().count("after") == 2


def test_a_paused_bar_leaves_the_log_handlers_alone(open_bar, console):
    handler = console()
    bar = open_bar()
    assert "handle" in vars(handler)
    bar.pause()
    assert "handle" not in vars(handler)
    bar.resume()
    assert "handle" in vars(handler)


def test_records_of_other_loggers_have_their_own_line_too(open_bar, terminal, clock, console):
    root, handler = logging.getLogger(), console()
    handler.addFilter(lambda record: "secret" not in record.getMessage())
    handler.setLevel("WARNING")
    bar = open_bar()
    advance(bar, clock, [1], 1)
    logging.getLogger("mine").warning("of my own")
    root.warning("a secret")
    root.info("below the handler's level")
    root.warning("of the root")
    *above, line = terminal.lines()
    assert above == ["of my own", "of the root"]
    assert " 1/1000 " in line
    bar.close()
    root.warning("after")
    assert terminal.lines()[-2:] == ["after", ""]


def test_records_of_handlers_that_are_no_stream_handlers_have_their_own_line(open_bar, terminal, clock):
    """Such as those of absl and rich."""
    root, handler = logging.getLogger(), absl.logging.ABSLHandler(logging.Formatter("%(message)s"))
    root.addHandler(handler)
    try:
        advance(open_bar(), clock, [1], 1)
        logging.getLogger("jaxspec").warning("by absl")
    finally:
        root.removeHandler(handler)
    *_, record, line = terminal.lines()
    assert record == "by absl"
    assert " 1/1000 " in line


def test_a_handler_that_is_added_meanwhile_stays(open_bar, console):
    bar = open_bar()
    handler = console()
    bar.close()
    assert handler in logging.getLogger().handlers


def test_other_filters_of_the_logger_still_count(open_bar, caplog):
    logger = logging.getLogger("jaxspec")

    def quiet(record):
        return "secret" not in record.getMessage()

    logger.addFilter(quiet)
    try:
        open_bar()
        logger.warning("a secret")
        logger.warning("no such thing")
        assert caplog.messages == ["no such thing"]
    finally:
        logger.removeFilter(quiet)


def test_a_record_is_whole_while_another_thread_draws(open_bar, terminal, clock, console):
    console()
    bar, logger = open_bar(), logging.getLogger("jaxspec")
    thread = threading.Thread(target=advance, args=(bar, clock, range(1, 500), 1))
    thread.start()
    for number in range(100):
        logger.warning("record %d", number)
    thread.join()
    *records, line = terminal.lines()
    assert records == [f"record {number}" for number in range(100)]
    assert " 499/1000 " in line


def test_another_thread_draws_nothing_while_a_record_is_written(open_bar, terminal, clock):
    logger = logging.getLogger("jaxspec")

    class Handler(logging.Handler):
        def emit(self, record):
            terminal.stream.write("half ")
            thread.start()
            thread.join(0.2)
            terminal.stream.write("line\n")

    handler = Handler()
    logger.addHandler(handler)
    try:
        bar = open_bar()
        thread = threading.Thread(target=advance, args=(bar, clock, [5, 6], 1))
        logger.warning("a record")
        thread.join()
        bar.close()
    finally:
        logger.removeHandler(handler)
    first, line, _ = terminal.lines()
    assert first == "half line"
    assert " 6/1000" in line


def test_a_handler_that_fails_fails_as_without_a_bar(open_bar, terminal, clock):
    class Handler(logging.Handler):
        def emit(self, record):
            raise RuntimeError("in the handler")

    logger, handler = logging.getLogger("jaxspec"), Handler()
    logger.addHandler(handler)
    try:
        bar = open_bar()
        with pytest.raises(RuntimeError, match="in the handler"):
            logger.warning("lost")
        advance(bar, clock, [1], 1)
        assert " 1/1000" in terminal.line()
        bar.close()
    finally:
        logger.removeHandler(handler)


def test_a_bar_that_is_paused_while_a_record_is_written_stays_away(open_bar, terminal):
    class Handler(logging.Handler):
        def emit(self, record):
            bar.pause()

    logger, handler = logging.getLogger("jaxspec"), Handler()
    logger.addHandler(handler)
    try:
        bar = open_bar()
        logger.warning("put aside")
    finally:
        logger.removeHandler(handler)
    assert terminal.line() == ""
    assert "handle" not in vars(handler)


def test_a_signal_handler_may_log_while_the_line_is_drawn(open_bar, terminal, clock, console, caplog):
    console()
    bar = open_bar()

    def interrupted():
        terminal.stream.flushed = terminal.written
        logging.getLogger("jaxspec").warning("Stopping")

    terminal.stream.flushed = interrupted
    thread = threading.Thread(target=advance, args=(bar, clock, [1, 2], 1), daemon=True)
    thread.start()
    thread.join(timeout=5)
    assert not thread.is_alive()
    assert caplog.messages == ["Stopping"]


# A bar within a bar.


def test_a_bar_within_a_bar(open_bar, terminal, clock):
    train = open_bar("train", batch_size=None)
    advance(train, clock, [10, 20], 1)
    train.pause()
    train.pause()
    assert terminal.line() == ""
    with open_bar("evaluate", total=2, batch_size=None) as evaluate:
        advance(train, clock, [20], 1)
        advance(evaluate, clock, [1, 2], 100)
        assert re.match(r"evaluate: 100%\|█+\| 2/2 ", terminal.line())
    train.resume()
    assert re.match(r"evaluate: 100%\|█+\| 2/2 ", terminal.lines()[0])
    assert re.match(r"train: .* 20/1000 .* 10\.00step/s", terminal.lines()[1])
    # The evaluation took no time from the training.
    advance(train, clock, [30, 40], 1)
    assert re.search(r"\[00:03<01:36, 10\.00step/s", terminal.lines()[1])


def test_a_paused_bar_that_is_closed_shows_its_last_state(open_bar, terminal, clock):
    bar = open_bar()
    advance(bar, clock, [10, 20], 1)
    bar.pause()
    advance(bar, clock, [30], 100)
    bar.close()
    first, after = terminal.lines()
    assert " 30/1000 " in first
    assert after == ""


# Where there is none.


@pytest.mark.parametrize("enabled", [None, True])
def test_no_bar_where_there_is_no_terminal(open_bar, tmp_path, enabled):
    with open(tmp_path / "log", "w") as file:
        assert open_bar(stream=file, enabled=enabled) is None
    assert (tmp_path / "log").read_text() == ""
    assert open_bar(stream=file, enabled=enabled) is None  # closed
    assert open_bar(stream=None, enabled=enabled) is None  # as under pythonw


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_bar_by_itself_on_a_terminal_that_says_it_is_simple(open_bar, terminal, clock, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert open_bar() is None
    assert terminal.written() == ""
    bar = open_bar(enabled=True)
    advance(bar, clock, [1, 2], 1)
    assert " 2/1000 " in terminal.line()
    assert "\x1b" not in terminal.written()


def test_an_empty_no_color_says_nothing(open_bar, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "")
    assert open_bar() is not None


def test_no_bar_where_it_is_turned_off(open_bar, terminal):
    assert open_bar(enabled=False) is None
    assert terminal.written() == ""


def test_a_terminal_that_hangs_up_does_not_end_the_run(open_bar, terminal, clock):
    bar = open_bar()
    terminal.hang_up()
    advance(bar, clock, [1, 2], 1)
    bar.pause()
    bar.resume()
    bar.close()


def test_a_closed_stream_does_not_end_the_run(open_bar, terminal, clock):
    bar = open_bar()
    terminal.stream.close()
    advance(bar, clock, [1, 2], 1)
    bar.pause()
    bar.resume()
    bar.close()


def test_no_thread_and_the_output_of_others_stays_where_it_was(open_bar, terminal, clock):
    stdout, threads = sys.stdout, threading.enumerate()
    advance(open_bar(), clock, [1, 2], 1)
    assert (sys.stdout, sys.stderr) == (stdout, terminal.stream)
    assert threading.enumerate() == threads


def run_on_a_terminal(**environment):
    """What a process leaves on the terminal that is its standard error and nothing else. No logging is set up."""
    program = """
import logging
from jaxspec._src.run.progress import open_progress
with open_progress("predict", start=0, total=3, batch_size=None, enabled=None) as bar:
    for step in range(1, 4):
        bar.show(step)
        print("row", step)
    logging.getLogger("jaxspec").warning("a warning")
    logging.getLogger("jaxspec").info("not shown")
"""
    terminal = Terminal(40)
    done = subprocess.run(
        [sys.executable, "-c", program],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=terminal.stream,
        env=os.environ | environment,
    )
    lines = terminal.lines()
    terminal.close()
    assert done.returncode == 0, lines
    assert done.stdout == b"row 1\nrow 2\nrow 3\n"
    return lines


def test_standard_error_of_a_process_whose_output_is_piped():
    warning, line, after = run_on_a_terminal()
    assert warning == "a warning"
    assert re.match(r"predict: 100%\|█+\| 3/3 ", line)
    assert after == ""


def test_the_environment_variable_of_tqdm_turns_it_off():
    assert run_on_a_terminal(TQDM_DISABLE="1") == ["a warning", ""]


# In a notebook.

NOTEBOOK = """
import logging, sys, types

def module(name, **attributes):
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(attributes)

class Widget:
    def __init__(self, children=(), **values):
        self.children, self.value, self.bar_style = children, "", ""
        self.layout, self.style = types.SimpleNamespace(), types.SimpleNamespace()

shown = []
module("ipykernel.zmqshell")
module("IPython", get_ipython=lambda: None)
module("IPython.display", display=shown.append)
"""
WIDGETS = 'module("ipywidgets", HTML=Widget, FloatProgress=Widget, HBox=Widget)\n'
USE = """
from jaxspec._src.run.progress import open_progress
bar = open_progress("train", start=0, total=4, batch_size=2, enabled=None)
bar.show(1, 0.5)
logging.getLogger("jaxspec").warning("a warning")
bar.pause()
bar.resume()
bar.show(4, 0.25)
bar.close()
"""


def run_in_notebook(program, **options):
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, **options)


def test_a_notebook_shows_a_widget():
    look = """
(box,) = shown
left, progress, right = box.children
print(left.value, progress.value, progress.bar_style, right.value, sep="\\n")
"""
    done = run_in_notebook(NOTEBOOK + WIDGETS + USE + look)
    lines = done.stdout.replace("\u2007", " ").splitlines()  # a space as wide as a digit
    assert lines[:3] == ["train: 100%", "4", "success"]
    assert re.fullmatch(r" 4/4 \[.*step/s, loss=0\.25, .* examples/s\]", lines[3])
    assert done.stderr == "a warning\n"


def test_a_notebook_without_widgets_shows_text():
    done = run_in_notebook(NOTEBOOK + 'sys.modules["ipywidgets"] = None\n' + USE)
    assert "TqdmWarning: IProgress not found" in done.stderr
    assert re.search(r"train: 100%.* 4/4 .*loss=0.25", done.stderr)


# Through the estimator.


def test_train_evaluate_and_predict_each_show_their_own(terminal, console, monkeypatch, caplog, tmp_path):
    terminal.resize(400)  # room for the path in a log line
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    caplog.set_level("INFO", "jaxspec")
    estimator = js.TPUEstimator(
        linear_model_fn,
        init_fn=linear_init,
        config=js.RunConfig(model_dir=str(tmp_path)),
        use_tpu=False,
        train_batch_size=32,
        eval_batch_size=32,
        predict_batch_size=32,
    )
    x, y = data(64)
    console("jaxspec")
    estimator.train(lambda: batches(x, y, size=32) * 3, max_steps=6)
    estimator.evaluate(lambda: batches(x, y, size=32), steps=2)
    list(estimator.predict(lambda: batches(x, y, size=32)))
    lines = terminal.lines()
    starts = ("Saving checkpoint for 6", "train:", "evaluate:", "predict:")
    saved, train, evaluate, predict = (
        next(i for i, line in enumerate(lines) if line.startswith(start)) for start in starts
    )
    assert re.match(r"train: 100%\|█+\| 6/6 \[.*, loss=[0-9.]+(, [0-9.]+k? examples/s)?\]$", lines[train]), lines[train]
    assert re.match(r"evaluate: 100%\|█+\| 2/2 ", lines[evaluate])
    assert re.match(r"predict: 2step ", lines[predict])
    assert saved < train < evaluate < predict
    assert sum("█" in line for line in lines) == 2
