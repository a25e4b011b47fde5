"""Event files that are damaged, torn or hold nonsense: what can be read of them counts, and the writer begins
another."""

import errno
import io
import logging
import os
import struct

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from jaxspec._src.summary.event_reader import read_scalars
from jaxspec._src.summary.writer import SummaryWriter


def record(data, *, length=None):
    """A record of a TFRecord file with valid checksums; `length` may lie."""
    header = struct.pack("<Q", len(data) if length is None else length)
    return header + struct.pack("<I", masked_crc32c(header)) + data + struct.pack("<I", masked_crc32c(data))


def scalar_event(step, value, tag="x", wall_time=0.0):
    event = Event(wall_time=wall_time, step=step)
    event.summary.value.add(tag=tag, simple_value=value)
    return event


def tensor_event(step, tag="x", **fields):
    """A scalar in the form of TensorFlow 2."""
    event = Event(step=step)
    value = event.summary.value.add(tag=tag)
    value.metadata.plugin_data.plugin_name = "scalars"
    for name, content in fields.items():
        if name == "dtype":
            value.tensor.dtype = content
        elif name == "tensor_content":
            value.tensor.tensor_content = content
        else:
            getattr(value.tensor, name).extend(content)
    return event


def put(directory, name, *records):
    path = directory / f"events.out.tfevents.{name}"
    path.write_bytes(b"".join(r if isinstance(r, bytes) else record(r.SerializeToString()) for r in records))
    return path


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def test_a_file_cut_at_any_byte_hides_neither_what_is_before_nor_a_later_file(tmp_path, caplog):
    whole = [record(scalar_event(step, float(step), wall_time=1.0).SerializeToString()) for step in (1, 2, 3)]
    put(tmp_path, "2", scalar_event(9, 9.0, wall_time=2.0))
    ends = np.cumsum([0, *map(len, whole)])
    for cut in range(ends[-1] + 1):
        path = put(tmp_path, "1", b"".join(whole)[:cut])
        caplog.clear()
        steps = [step for step in (1, 2, 3) if ends[step] <= cut]
        assert read_scalars(tmp_path) == {step: {"x": float(step)} for step in [*steps, 9]}
        is_torn = cut not in ends
        assert [str(path) in line and "breaks off inside the record" in line for line in warnings_of(caplog)] == [
            True
        ] * is_torn


BAD = {
    "no event": b"\xff\xff\xff not a message",
    "a tag that is no text": Event(step=5).SerializeToString() + b"\x2a\x07\x0a\x05\x0a\x03\xff\xfe\xfd",
    "content of a wrong length": tensor_event(5, dtype=1, tensor_content=b"abc").SerializeToString(),
    "content of two numbers": tensor_event(5, dtype=1, tensor_content=b"abcdefgh").SerializeToString(),
    "no content": tensor_event(5, dtype=1).SerializeToString(),
    "two values": tensor_event(5, dtype=1, float_val=[1.0, 2.0]).SerializeToString(),
    "a text": tensor_event(5, dtype=7, string_val=[b"abc"]).SerializeToString(),
    "no dtype": tensor_event(5, float_val=[]).SerializeToString(),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_bad_content_with_valid_checksums_is_one_warning_and_the_rest_counts(tmp_path, caplog, bad):
    path = put(tmp_path, "1", scalar_event(1, 1.0), record(bad), record(bad), scalar_event(2, 2.0))
    put(tmp_path, "2", scalar_event(3, 3.0))
    assert read_scalars(tmp_path) == {1: {"x": 1.0}, 2: {"x": 2.0}, 3: {"x": 3.0}}
    (line,) = warnings_of(caplog)
    assert str(path) in line
    assert "Remove the file" in line


@pytest.mark.parametrize("length", [2**20, 2**40, 2**63, 2**64 - 1])
def test_a_claimed_length_is_not_believed(tmp_path, caplog, length):
    put(tmp_path, "1", scalar_event(1, 1.0), record(b"abc", length=length))
    put(tmp_path, "2", scalar_event(2, 2.0))
    assert read_scalars(tmp_path) == {1: {"x": 1.0}, 2: {"x": 2.0}}
    assert len(warnings_of(caplog)) == 1


def test_a_wrong_checksum_ends_the_file_and_no_other(tmp_path, caplog):
    good = record(scalar_event(2, 2.0).SerializeToString())
    for place in (2, 9, 14, len(good) - 1):
        damaged = bytearray(good)
        damaged[place] ^= 64
        put(tmp_path, "1", scalar_event(1, 1.0), bytes(damaged))
        put(tmp_path, "2", scalar_event(3, 3.0))
        caplog.clear()
        assert read_scalars(tmp_path) == {1: {"x": 1.0}, 3: {"x": 3.0}}
        assert ["wrong checksum at byte" in line for line in warnings_of(caplog)] == [True]


def test_what_only_looks_like_an_event_file_is_passed_over(tmp_path, caplog):
    put(tmp_path, "1")
    (tmp_path / "events.out.tfevents.directory").mkdir()
    (tmp_path / "events.out.tfevents.dangling").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "events.out.tfevents.pipe")
    put(tmp_path, "2", scalar_event(3, 3.0))
    assert read_scalars(tmp_path) == {3: {"x": 3.0}}
    assert warnings_of(caplog) == []
    assert read_scalars(tmp_path / "events.out.tfevents.2") == {}


def test_a_file_that_may_not_be_read_is_one_warning(tmp_path, caplog, monkeypatch):
    path = put(tmp_path, "1", scalar_event(1, 1.0))
    put(tmp_path, "2", scalar_event(2, 2.0))

    def refusing(name, *args, **kwargs):
        if str(name) == str(path):
            raise PermissionError(errno.EACCES, "Permission denied", name)
        return open(name, *args, **kwargs)

    monkeypatch.setattr("jaxspec._src.base.files.open", refusing, raising=False)
    assert read_scalars(tmp_path) == {2: {"x": 2.0}}
    assert ["Permission denied" in line for line in warnings_of(caplog)] == [True]


def test_a_reader_that_looks_again_and_again_is_told_once(tmp_path, caplog):
    put(tmp_path, "1", record(b"\xff\xff"))
    told = set()
    for _ in range(3):
        assert read_scalars(tmp_path, told) == {}
    assert len(warnings_of(caplog)) == 1


@pytest.mark.parametrize("wall_time", [float("nan"), float("inf"), -1.0])
def test_a_wall_time_of_nonsense_hides_no_file(tmp_path, wall_time):
    put(tmp_path, "1", scalar_event(1, 1.0, wall_time=wall_time))
    put(tmp_path, "2", scalar_event(2, 2.0, wall_time=5.0))
    assert read_scalars(tmp_path) == {1: {"x": 1.0}, 2: {"x": 2.0}}


def test_scalars_of_tensorflow_2_in_each_numeric_type(tmp_path):
    put(
        tmp_path,
        "1",
        tensor_event(1, dtype=1, float_val=[0.5]),
        tensor_event(2, dtype=1, tensor_content=struct.pack("<f", 0.25)),
        tensor_event(3, dtype=2, tensor_content=struct.pack("<d", 0.125)),
        tensor_event(4, dtype=3, int_val=[4]),
        tensor_event(5, dtype=9, tensor_content=struct.pack("<q", -5)),
    )
    assert {step: values["x"] for step, values in read_scalars(tmp_path).items()} == {
        1: 0.5,
        2: 0.25,
        3: 0.125,
        4: 4,
        5: -5,
    }


# The writer.


class FullDisk:
    """A file that fails from a given number of bytes on, as on a full disk: what fitted stands there."""

    def __init__(self, file, room):
        self._file, self.room = file, room

    def write(self, data):
        self._file.write(data[: self.room[0]])
        self.room[0] -= min(len(data), self.room[0])
        if not self.room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self):
        self._file.flush()

    def close(self):
        self._file.close()

    def fileno(self):
        return self._file.fileno()


@pytest.mark.parametrize("room", [1, 30, 60, 100])
def test_a_full_disk_is_one_warning_and_a_new_file_when_there_is_room(tmp_path, caplog, monkeypatch, room):
    now, left = [0.0], [room]
    monkeypatch.setattr(
        "jaxspec._src.summary.event_file.open_to_write", lambda path: FullDisk(io.FileIO(path, "w"), left)
    )
    writer = SummaryWriter(str(tmp_path), clock=lambda: now[0])
    for step in range(50):
        now[0] = float(step)
        writer.scalar("x", float(step), step)
        writer.flush()
    assert ["No space left on device" in line and str(tmp_path) in line for line in warnings_of(caplog)] == [True]
    left[0] = 10**9
    now[0] = 100.0
    writer.scalar("x", 50.0, 50)
    writer.close()
    assert ["written again" in line for line in warnings_of(caplog)[1:]] == [True]
    assert read_scalars(tmp_path)[50] == {"x": 50.0}
    assert len(list(tmp_path.iterdir())) <= 2 + 5  # an attempt every 10 s, and none leaves an empty file


def test_a_directory_that_cannot_be_made_is_one_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    writer = SummaryWriter(str(tmp_path / "file" / "eval"))
    writer.scalar("x", 1.0, 1)
    writer.scalar("x", 2.0, 2)
    writer.flush()
    writer.close()
    (line,) = warnings_of(caplog)
    assert str(tmp_path / "file") in line
    assert "make the directory writable" in line


def test_a_directory_that_vanished_and_cannot_be_made_again_is_one_warning(tmp_path, caplog):
    now = [0.0]
    writer = SummaryWriter(str(tmp_path / "logs"), clock=lambda: now[0])
    writer.scalar("x", 1.0, 1)
    writer.flush()
    for path in (tmp_path / "logs").iterdir():
        path.unlink()
    (tmp_path / "logs").rmdir()
    (tmp_path / "logs").write_text("in the way")
    for now[0] in (20.0, 21.0, 40.0):
        writer.scalar("x", 2.0, 2)
    assert len(warnings_of(caplog)) == 1
    (tmp_path / "logs").unlink()
    now[0] = 60.0
    writer.scalar("x", 3.0, 3)
    writer.close()
    assert read_scalars(tmp_path / "logs") == {3: {"x": 3.0}}


def test_a_writer_begins_a_new_file_beside_a_torn_one(tmp_path):
    put(tmp_path, "1", scalar_event(1, 1.0), record(scalar_event(2, 2.0).SerializeToString())[:-3])
    writer = SummaryWriter(str(tmp_path))
    writer.scalar("x", 3.0, 3)
    writer.close()
    assert read_scalars(tmp_path) == {1: {"x": 1.0}, 3: {"x": 3.0}}
