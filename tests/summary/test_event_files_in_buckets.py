"""Event files in a bucket, where nothing can be appended: uploaded now and then, and never rewritten without end."""

import subprocess
import sys

import pytest
from bucket_servers import NO_ACCESS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import jaxspec as js
from jaxspec._src.base import buckets
from jaxspec._src.run.summaries import run_writer
from jaxspec._src.summary import event_file
from jaxspec._src.summary.writer import SummaryWriter
from jaxspec.hooks import read_eval_metrics


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def files(bucket):
    return sorted(buckets.objects_under(bucket.directory))


def uploads(bucket):
    return [
        path
        for method, path in bucket.requests
        if method in ("POST", "PUT") and ("tfevents" in path or "/upload/" in path)
    ]


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def writer(bucket, clock):
    return SummaryWriter(bucket.directory, clock=clock)


def test_events_are_uploaded_every_30_seconds_at_most_and_when_they_are_flushed_by_hand(bucket, clock, writer):
    writer.flush_when(max_queue=1, flush_millis=0)
    for second in range(100):
        clock.now = float(second)
        writer.scalar("x", second, second)
    assert len(uploads(bucket)) == 3
    assert sorted(read_eval_metrics(bucket.directory)) == list(range(91))
    writer.flush()
    assert sorted(read_eval_metrics(bucket.directory)) == list(range(100))
    writer.flush()  # there is nothing new
    assert len(uploads(bucket)) == 4
    writer.scalar("x", 1.0, 100)
    writer.close()
    assert len(read_eval_metrics(bucket.directory)) == 101
    assert len(files(bucket)) == 1


def test_what_is_written_after_a_run_goes_into_the_same_object(bucket, writer):
    for step in range(3):
        writer.scalar("x", 1.0, step)
        writer.release()
        assert sorted(read_eval_metrics(bucket.directory)) == list(range(step + 1))
    assert len(files(bucket)) == 1


def test_a_long_run_writes_several_files_and_no_byte_very_often(bucket, clock, writer, monkeypatch):
    monkeypatch.setattr(event_file, "_OBJECT_BYTES", 2000)
    for step in range(300):
        clock.now += 5
        writer.scalar("x", step, step)
    writer.close()
    sizes = [file.size for file in buckets.objects_under(bucket.directory).values()]
    assert len(sizes) > 3
    assert max(sizes) < 2500
    assert list(read_eval_metrics(bucket.directory)) == list(range(300))


def test_many_events_at_once_are_all_written(bucket, clock, writer, monkeypatch):
    monkeypatch.setattr(event_file, "_OBJECT_BYTES", 2000)
    for step in range(200):
        writer.scalar("x", step, step)
    writer.flush()
    assert list(read_eval_metrics(bucket.directory)) == list(range(200))


def test_an_upload_that_fails_is_one_warning_and_is_repeated(bucket, clock, writer, monkeypatch, caplog):
    monkeypatch.setattr(event_file, "_OBJECT_BYTES", 2000)
    bucket.fail(NO_ACCESS[bucket.scheme], methods=("POST", "PUT"))
    for step in range(100):
        clock.now += 10
        writer.scalar("x", step, step)
    warned = [line for line in caplog.messages if "Summaries cannot be written" in line]
    assert len(warned) == 1
    assert bucket.directory in warned[0]
    assert "no access for you" in warned[0]
    bucket.works_again()
    writer.flush()
    assert "Summaries are written again" in caplog.text
    steps = list(read_eval_metrics(bucket.directory))
    assert 10 < len(steps) < 100  # beyond the size of one file they are dropped
    assert steps == list(range(len(steps)))
    writer.scalar("x", 0.0, 200)
    writer.close()
    assert list(read_eval_metrics(bucket.directory)) == [*steps, 200]


def test_a_directory_that_cannot_be_written_is_warned_of_before(bucket, clock, caplog):
    SummaryWriter(bucket.directory, clock=clock).warn_if_unwritable()
    assert files(bucket) == []
    assert caplog.messages == []
    SummaryWriter(f"{bucket.scheme}://no-such-bucket/run", clock=clock).warn_if_unwritable()
    assert "there is no such bucket" in caplog.text


def test_the_end_of_a_run_flushes_every_writer(bucket):
    with run_writer(js.RunConfig(model_dir=bucket.directory), bucket.directory):
        js.summary.create_file_writer(f"{bucket.directory}/other").scalar("x", 1.0, 3)
    assert read_eval_metrics(f"{bucket.directory}/other") == {3: {"x": 1.0}}


def test_tensorboard_reads_the_events_in_the_bucket(bucket, writer):
    writer.scalar("x", 2.5, 7)
    writer.close()
    events = EventAccumulator(bucket.directory).Reload()
    assert [(event.step, event.value) for event in events.Scalars("x")] == [(7, 2.5)]


_AT_EXIT = """
import sys, jaxspec as js
js.summary.create_file_writer(sys.argv[1]).scalar("x", 1.0, 3)
"""


def test_what_nobody_flushed_is_a_warning_when_the_program_ends(bucket):
    """The libraries of the stores need threads, which Python does not start any more then."""
    done = subprocess.run(
        [sys.executable, "-c", _AT_EXIT, bucket.directory], check=True, timeout=120, capture_output=True, text=True
    )
    assert f"Summaries cannot be written to {bucket.directory}/events.out" in done.stderr
