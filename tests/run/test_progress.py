"""The progress bar under a real pseudo-terminal: its bytes, and what they make of the screen."""

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

import pytest
from tiny_models import batches, data, linear_init, linear_model_fn

import jaxspec as js
from jaxspec._src.run.progress import open_progress


class Clock:
    """Stands still until told."""

    def __init__(self):
        self.now = 100.0

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
        self.stream = _Stream(os.fdopen(slave, "wb"), encoding=encoding)
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
    """The lines that the bytes leave behind. Knows colours, return, newline and "erase line", and nothing else."""
    lines, column = [""], 0
    for token in re.findall(r"\x1b\[[0-9;?]*[a-zA-Z]|[\r\n]|[^\r\n\x1b]", text):
        if token == "\r":
            column = 0
        elif token == "\n":
            lines.append("")
            column = 0
        elif token == "\x1b[2K":
            lines[-1] = ""
        elif token.startswith("\x1b"):
            assert token.endswith("m"), f"unexpected escape {token!r}"
        else:
            lines[-1] = lines[-1].ljust(column)[:column] + token + lines[-1][column + 1 :]
            column += 1
            assert column < columns, f"the line wraps: {lines[-1]!r}"
    return [line.rstrip() for line in lines]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.fixture
def terminal():
    terminal = Terminal(120)
    yield terminal
    terminal.close()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def open_bar(terminal, clock):
    """Opens bars on the terminal; all are closed at the end, for they hang on the library's logger."""
    bars = []

    def open_bar(label="train", **options):
        options = {"start": 0, "total": 1000, "rows_per_step": 32, "enabled": None, "clock": clock} | options
        bar = open_progress(label, **{"stream": terminal.stream} | options)
        if bar is not None:
            bars.append(bar)
        return bar

    yield open_bar
    for bar in bars:
        bar.close()
    assert logging.getLogger("jaxspec").filters == []


def advance(bar, clock, steps, secs, loss=0.12345):
    """A step every `secs` seconds."""
    for step in steps:
        clock.now += secs
        bar.update(step, loss)


def test_shows_where_the_run_stands(open_bar, terminal, clock):
    bar = open_bar()
    assert re.fullmatch(r"train +0/1000", terminal.line().replace("━", ""))
    clock.now += 60  # compilation
    advance(bar, clock, range(1, 202), 0.1)
    assert re.fullmatch(r"train ━+ 201/1000 loss 0\.1235 10 steps/s 320 examples/s 1:20 left", terminal.line()), (
        terminal.line()
    )


def test_the_bar_fills(open_bar, terminal, clock):
    def filled():
        _, cells = re.findall(r"\x1b\[([0-9;]*)m(━+)", terminal.written().rpartition("\x1b[2K")[2])[0]
        return len(cells)

    bar = open_bar()
    advance(bar, clock, [250], 1)
    quarter = filled()
    advance(bar, clock, [500], 1)
    assert 2 <= quarter < filled()
    advance(bar, clock, [2000], 1)
    assert terminal.line().count("━") == filled()


def test_one_line_and_no_flood(open_bar, terminal, clock):
    bar = open_bar()
    advance(bar, clock, range(1, 10_001), 0.001)
    text = terminal.written()
    assert "\n" not in text
    assert 40 <= text.count("train") <= 55  # ten seconds at five a second
    bar.close()
    assert terminal.written().count("\n") == 1
    assert terminal.written().endswith("\n")


def test_the_last_state_stays_when_the_bar_closes(open_bar, terminal, clock):
    with open_bar(total=7) as bar:
        advance(bar, clock, range(1, 8), 0.01)
        assert " 1/7 " in terminal.line()
    line, after = terminal.lines()
    assert " 7/7 loss 0.1235 100 steps/s 3200 examples/s 0:00 left" in line
    assert after == ""
    bar.close()
    bar.update(8)
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
    # Colours are reset, and the cursor is not hidden: even a kill leaves it visible.
    assert re.findall(r"\x1b\[([0-9;]*)m", terminal.written())[-1] == "0"
    assert set(re.findall(r"\x1b\[[0-9;?]*([a-zA-Z])", terminal.written())) == {"m", "K"}


def test_rates_are_of_the_last_seconds(open_bar, terminal, clock):
    bar = open_bar(total=100_000)
    advance(bar, clock, range(1, 101), 0.01)
    advance(bar, clock, range(101, 111), 2)
    assert " 0.5 steps/s 16 examples/s " in terminal.line()


def test_a_slow_step_is_measured_from_the_one_before(open_bar, terminal, clock):
    bar = open_bar(total=2000, rows_per_step=None)
    advance(bar, clock, [1000, 1100, 1300], 30)
    assert terminal.line().endswith(" 6.67 steps/s 1:45 left")
    assert "examples" not in terminal.line()


@pytest.mark.parametrize(
    ("steps", "shown"), [([1, 2], "2:46:38 left"), ([1, 1], "0 steps/s"), ([1, 20_000], " 0:00 left")]
)
def test_time_left(open_bar, terminal, clock, steps, shown):
    bar = open_bar(total=10_000, rows_per_step=None)
    advance(bar, clock, steps, 1)
    assert terminal.line().endswith(shown)


def test_without_a_total_there_is_neither_bar_nor_time_left(open_bar, terminal, clock):
    bar = open_bar("evaluate", total=None)
    advance(bar, clock, [1, 2], 1, loss=None)
    assert terminal.line() == "evaluate 2 1 steps/s 32 examples/s"


def test_a_resumed_run_begins_where_it_stood(open_bar, terminal):
    open_bar(start=500)
    assert terminal.line().endswith(" 500/1000")


def test_nothing_to_do(open_bar, terminal):
    open_bar(total=0).close()
    assert terminal.lines()[0].endswith(" 0/0")


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (80, r"train ━{5,} 2/1000 loss 0\.1235 1 steps/s 32 examples/s 16:38 left"),
        (60, r"train ━{5,} 2/1000 loss 0\.1235 1 steps/s 16:38 left"),
        (50, r"train 2/1000 loss 0\.1235 1 steps/s 16:38 left"),
        (40, r"train 2/1000 loss 0\.1235 16:38 left"),
        (30, r"train 2/1000 loss 0\.1235"),
        (20, r"train 2/1000"),
        (9, r"train 2/"),
        (2, r"t"),
        (1, r""),
    ],
)
def test_parts_are_left_out_on_a_narrow_terminal(open_bar, terminal, clock, columns, shown):
    terminal.resize(columns)
    bar = open_bar()
    advance(bar, clock, [1, 2], 1)
    assert re.fullmatch(shown, terminal.line()), terminal.line()


def test_follows_the_width_of_the_terminal(open_bar, terminal, clock):
    bar = open_bar()
    terminal.written()
    terminal.resize(20)
    before = len(terminal.written())
    advance(bar, clock, [1], 1)
    assert screen(terminal.written()[before:], 20) == ["train 1/1000"]


def test_a_terminal_that_does_not_know_its_width_has_80(open_bar, terminal, clock):
    terminal.resize(0)
    advance(open_bar(), clock, [1, 2], 1)
    terminal.columns = 80
    assert len(terminal.line()) == 79


def test_ascii_where_the_encoding_knows_no_more(open_bar, clock):
    terminal = Terminal(120, encoding="ascii")
    bar = open_bar(stream=terminal.stream)
    advance(bar, clock, [1, 2], 1)
    assert re.match(r"train -+ 2/1000 ", terminal.line())
    bar.close()
    terminal.close()


def test_log_records_have_their_own_line(open_bar, terminal, clock, caplog):
    logger, root = logging.getLogger("jaxspec"), logging.getLogger()
    handlers = {logger: logging.StreamHandler(terminal.stream), root: logging.StreamHandler(terminal.stream)}
    for owner, handler in handlers.items():
        owner.addHandler(handler)
    try:
        bar = open_bar()
        advance(bar, clock, [1], 1)
        with caplog.at_level("INFO", "jaxspec"):
            logger.info("Saving checkpoint for %d", 1)
        *above, line = terminal.lines()
        assert above == ["Saving checkpoint for 1"] * 2
        assert re.match(r"train ━+ 1/1000", line)  # at once: the next step may take long
        with caplog.at_level("WARNING", "jaxspec"):
            logger.info("not wanted")
        assert caplog.messages == ["Saving checkpoint for 1"]
        bar.pause()
        assert logger.filters == []
        bar.resume()
        bar.close()
        logger.error("after")
        *_, one, two, last = terminal.lines()
        assert (one, two, last) == ("after", "after", "")
        assert terminal.written().count("after") == 2
    finally:
        for owner, handler in handlers.items():
            owner.removeHandler(handler)


def test_records_of_other_loggers_have_their_own_line_too(open_bar, terminal, clock):
    root, handler = logging.getLogger(), logging.StreamHandler(terminal.stream)
    handler.addFilter(lambda record: "secret" not in record.getMessage())
    root.addHandler(handler)
    try:
        bar = open_bar()
        advance(bar, clock, [1], 1)
        logging.getLogger("mine").warning("of my own")
        root.warning("a secret")
        root.warning("of the root")
        *above, line = terminal.lines()
        assert above == ["of my own", "of the root"]
        assert re.match(r"train ━+ 1/1000", line)
        bar.pause()
        assert len(handler.filters) == 1
        bar.resume()
        bar.close()
        assert len(handler.filters) == 1
        root.warning("after")
        assert terminal.lines()[-2:] == ["after", ""]
    finally:
        root.removeHandler(handler)


def test_records_in_a_row_cost_no_new_line_each(open_bar, terminal, clock, caplog):
    bar, logger = open_bar(), logging.getLogger("jaxspec")
    advance(bar, clock, [1, 2], 0.1)
    logger.warning("soon")
    assert " 1/1000" in terminal.line()
    clock.now += 0.15
    logger.warning("later")
    assert " 2/1000" in terminal.line()


def test_other_filters_of_the_logger_still_count(open_bar, caplog):
    logger = logging.getLogger("jaxspec")

    def quiet(record):
        return "secret" not in record.getMessage()

    logger.addFilter(quiet)
    try:
        bar = open_bar()
        logger.warning("a secret")
        logger.warning("no such thing")
        assert caplog.messages == ["no such thing"]
        bar.close()
    finally:
        logger.removeFilter(quiet)


def test_nothing_is_drawn_while_a_record_is_written(open_bar, terminal, clock):
    """Neither by a step on another thread nor by a record within."""
    logger, bar = logging.getLogger("jaxspec"), open_bar()

    class Handler(logging.Handler):
        def emit(self, record):
            terminal.stream.write("half ")
            thread = threading.Thread(target=advance, args=(bar, clock, [5], 1))
            thread.start()
            thread.join()
            if record.msg == "outer":
                logger.warning("inner")
            terminal.stream.write("line\n")
            terminal.stream.flush()

    handler = Handler()
    logger.addHandler(handler)
    try:
        logger.warning("outer")
    finally:
        logger.removeHandler(handler)
    assert "train" not in terminal.written().partition("half")[2].rpartition("line")[0]
    assert " 5/1000" in terminal.lines()[-1]


def test_a_bar_that_is_paused_while_a_record_is_written_stays_away(open_bar, terminal):
    class Handler(logging.Handler):
        def emit(self, record):
            bar.pause()

    logger, handler, bar = logging.getLogger("jaxspec"), Handler(), open_bar()
    logger.addHandler(handler)
    try:
        logger.warning("put aside")
    finally:
        logger.removeHandler(handler)
    assert terminal.line() == ""


def test_a_handler_that_fails_fails_as_without_a_bar(open_bar, terminal, clock):
    class Handler(logging.Handler):
        def emit(self, record):
            raise RuntimeError("in the handler")

    logger, handler, bar = logging.getLogger("jaxspec"), Handler(), open_bar()
    logger.addHandler(handler)
    try:
        with pytest.raises(RuntimeError, match="in the handler"):
            logger.warning("lost")
    finally:
        logger.removeHandler(handler)
    advance(bar, clock, [1], 1)
    assert " 1/1000" in terminal.line()


def test_a_signal_handler_may_log_while_the_line_is_drawn(open_bar, terminal, clock, caplog):
    bar = open_bar()

    def interrupted():
        terminal.stream.flushed = terminal.written
        logging.getLogger("jaxspec").warning("Stopping")

    terminal.stream.flushed = interrupted
    thread = threading.Thread(target=advance, args=(bar, clock, [1], 1), daemon=True)
    thread.start()
    thread.join(timeout=5)
    assert not thread.is_alive()
    assert caplog.messages == ["Stopping"]


def test_a_bar_within_a_bar(open_bar, terminal, clock):
    train = open_bar("train", rows_per_step=None)
    advance(train, clock, [10, 20], 1)
    train.pause()
    train.pause()
    assert terminal.line() == ""
    with open_bar("evaluate", total=2, rows_per_step=None) as evaluate:
        advance(train, clock, [20], 1)
        advance(evaluate, clock, [1, 2], 100)
        assert re.match(r"evaluate ━+ 2/2 ", terminal.line())
    train.resume()
    assert re.match(r"evaluate ━+ 2/2 ", terminal.lines()[0])
    assert re.match(r"train ━+ 20/1000 .*10 steps/s", terminal.lines()[1])
    # The evaluation took no time from the training.
    advance(train, clock, [30, 40], 1)
    assert " 10 steps/s" in terminal.lines()[1]


def test_a_paused_bar_that_is_closed_tells_its_last_state(open_bar, terminal, clock):
    bar = open_bar()
    advance(bar, clock, [10, 20], 1)
    bar.pause()
    advance(bar, clock, [30], 100)
    bar.close()
    first, after = terminal.lines()
    assert " 30/1000 loss 0.1235 10 steps/s " in first
    assert after == ""


@pytest.mark.parametrize("enabled", [None, True])
def test_no_bar_where_there_is_no_terminal(open_bar, tmp_path, enabled, monkeypatch):
    with open(tmp_path / "log", "w") as file:
        assert open_bar(stream=file, enabled=enabled) is None
    assert (tmp_path / "log").read_text() == ""
    assert open_bar(stream=file, enabled=enabled) is None  # closed
    monkeypatch.setattr(sys, "stderr", None)  # as under pythonw
    assert open_bar(stream=None, enabled=enabled) is None


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_bar_by_itself_on_a_terminal_that_says_it_is_simple(open_bar, terminal, clock, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert open_bar() is None
    assert terminal.written() == ""
    bar = open_bar(enabled=True)
    advance(bar, clock, [1, 2], 1)
    assert re.fullmatch(r"train +2/1000 loss 0.1235 1 steps/s 32 examples/s 16:38 left", terminal.line())
    assert "\x1b[3" not in terminal.written()  # no colours
    assert ("\x1b" in terminal.written()) == (name == "NO_COLOR")


def test_an_empty_no_color_says_nothing(open_bar, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "")
    assert open_bar() is not None


def test_no_bar_when_told_so(open_bar, terminal):
    assert open_bar(enabled=False) is None
    assert terminal.written() == ""


def test_no_bar_without_rich(open_bar, terminal, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert open_bar() is None
    assert open_bar(enabled=True) is None
    assert terminal.written() == ""


def test_a_terminal_that_hangs_up_does_not_end_the_run(open_bar, terminal, clock):
    bar = open_bar()
    terminal.hang_up()
    advance(bar, clock, [1, 2], 1)
    bar.close()


def test_a_closed_stream_does_not_end_the_run(open_bar, terminal, clock):
    bar = open_bar()
    terminal.stream.close()
    advance(bar, clock, [1, 2], 1)
    bar.close()


def test_no_thread_and_the_output_of_others_stays_where_it_was(open_bar, clock):
    streams, threads = (sys.stdout, sys.stderr), threading.enumerate()
    advance(open_bar(), clock, [1, 2], 1)
    assert (sys.stdout, sys.stderr) == streams
    assert threading.enumerate() == threads


def test_standard_error_of_a_process_whose_output_is_piped():
    """Only standard error is a terminal; its own width counts."""
    program = """
import sys
from jaxspec.progress import open_progress
with open_progress("predict", start=0, total=3, rows_per_step=None, enabled=None) as bar:
    for step in range(1, 4):
        bar.update(step)
        print("row", step)
"""
    terminal = Terminal(40)
    done = subprocess.run(
        [sys.executable, "-c", program], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=terminal.stream
    )
    assert done.returncode == 0, terminal.lines()
    assert done.stdout == b"row 1\nrow 2\nrow 3\n"
    line, after = terminal.lines()
    assert re.match(r"predict (━+ )?3/3 ", line)
    assert after == ""
    terminal.close()


def test_train_evaluate_and_predict_each_show_their_own(terminal, monkeypatch, caplog, tmp_path):
    terminal.resize(400)  # room for the path in a log line
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    handler, logger = logging.StreamHandler(terminal.stream), logging.getLogger("jaxspec")
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
    logger.addHandler(handler)
    try:
        estimator.train(lambda: batches(x, y, size=32) * 3, max_steps=6)
        estimator.evaluate(lambda: batches(x, y, size=32), steps=2)
        list(estimator.predict(lambda: batches(x, y, size=32)))
    finally:
        logger.removeHandler(handler)
    lines = terminal.lines()
    starts = ("Saving checkpoint for 6", "train", "evaluate", "predict")
    saved, train, evaluate, predict = (
        next(i for i, line in enumerate(lines) if line.startswith(start)) for start in starts
    )
    assert re.match(r"train ━+ 6/6 loss [0-9.]+( [0-9.]+ steps/s [0-9.]+ examples/s 0:00 left)?$", lines[train])
    assert re.match(r"evaluate ━+ 2/2( |$)", lines[evaluate])
    assert re.match(r"predict 2( |$)", lines[predict])
    assert saved < train < evaluate < predict
    assert sum("━" in line for line in lines) == 2
    assert logger.filters == []
