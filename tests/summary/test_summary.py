"""Summaries, read back with TensorBoard's own reader, and our reader of event files."""

import io
import logging
import os
import shutil
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import tensorboard.summary
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tiny_models import counting_init, counting_input, counting_model_fn, run_config

import jaxspec as js
from jaxspec._src.summary import event_file
from jaxspec._src.summary.context import run_position
from jaxspec._src.summary.event_reader import read_scalars
from jaxspec.summary import SummaryWriter, create_file_writer, record_if


def read(logdir):
    everything = dict.fromkeys(["scalars", "images", "histograms", "tensors"], 0)
    return EventAccumulator(str(logdir), size_guidance=everything).Reload()


def scalars(logdir, tag="x"):
    """[(step, value), ...] of one tag."""
    create_file_writer(logdir).flush()
    events = read(logdir)
    return [(event.step, event.value) for event in events.Scalars(tag)] if tag in events.Tags()["scalars"] else []


@pytest.fixture
def writer(tmp_path):
    """The default writer of the test, of `tmp_path`."""
    with create_file_writer(tmp_path).as_default() as writer:
        yield writer
    writer.close()


# The four kinds.


@pytest.mark.parametrize(
    "data",
    [2.5, np.float32(2.5), np.array([2, 3]), jnp.array([[1.0, 4.0]]), np.array([2.5], jnp.bfloat16), [2.0, 3.0]],
    ids=lambda data: type(data).__name__,
)
def test_scalar_writes_the_mean(writer, tmp_path, data):
    js.summary.scalar("x", data, step=7)
    assert scalars(tmp_path) == [(7, 2.5)]


@pytest.mark.parametrize("name", ["a name, with (signs)", "/slash", "ä/ö"])
def test_tags_are_written_as_they_are(writer, tmp_path, name):
    js.summary.scalar(name, 1, step=0)
    js.summary.histogram(f"{name}/h", [1.0, 2.0], step=0)
    writer.flush()
    assert read(tmp_path).Tags()["scalars"] == [name]
    assert read(tmp_path).Tags()["histograms"] == [f"{name}/h"]


def pixels(image_event):
    return np.asarray(PIL.Image.open(io.BytesIO(image_event.encoded_image_string)))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_image_of_bytes(writer, tmp_path, channels):
    data = np.random.default_rng(0).integers(0, 256, (5, 7, channels), np.uint8)
    js.summary.image("one", data, step=3)
    js.summary.image("batch_of_one", data[None], step=3)
    writer.flush()
    events = read(tmp_path)
    for tag in ("one", "batch_of_one"):
        (image,) = events.Images(tag)
        assert (image.step, image.height, image.width) == (3, 5, 7)
        np.testing.assert_array_equal(pixels(image), np.repeat(data, 3, -1) if channels == 1 else data)


def test_images_of_floats_are_rounded_and_clipped(writer, tmp_path):
    shades = np.array([-1, 0, 0.5, 1, 2, np.nan, np.inf])
    js.summary.image("x", shades.astype(np.float32).reshape(1, 7, 1), step=0)
    js.summary.image("half", jnp.asarray(shades, jnp.bfloat16).reshape(1, 7, 1), step=0)
    writer.flush()
    for tag in ("x", "half"):
        np.testing.assert_array_equal(pixels(read(tmp_path).Images(tag)[0])[0, :, 0], [0, 0, 128, 255, 255, 0, 255])


@pytest.mark.parametrize(("kwargs", "written"), [({}, 3), ({"max_outputs": 2}, 2), ({"max_outputs": 9}, 4)])
def test_of_several_images_the_first_ones_are_numbered(writer, tmp_path, kwargs, written):
    data = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1) + np.zeros((1, 2, 2, 3), np.uint8)
    js.summary.image("x", data, step=0, **kwargs)
    writer.flush()
    events = read(tmp_path)
    assert events.Tags()["images"] == [f"x/{i}" for i in range(written)]
    assert [pixels(events.Images(f"x/{i}")[0]).max() for i in range(written)] == list(range(written))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((5, 5)), r"summary.image\('x'\): got float64\[5,5\], expected \[k, height, width, channels\] or"),
        (np.zeros((5, 5, 2)), r"got float64\[5,5,2\].* with 1, 3 or 4 channels.*image\[..., None\]"),
        (
            np.zeros((5, 5, 3), np.int32),
            r"got int32\[5,5,3\], expected uint8 of 0 to 255 or floats of 0 to 1. Write image",
        ),
    ],
)
def test_image_refuses_other_shapes_and_types(writer, data, message):
    with pytest.raises(ValueError, match=message):
        js.summary.image("x", data, step=0)


def test_image_refuses_to_write_no_image(writer):
    with pytest.raises(ValueError, match=r"summary.image\('x'\): max_outputs is 0; expected 1 or more"):
        js.summary.image("x", np.zeros((1, 1, 1)), step=0, max_outputs=0)


def test_image_without_pillow_says_what_to_install(writer, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.delitem(sys.modules, "PIL.Image")
    with pytest.raises(ImportError, match=r"summary.image: .* needs Pillow. Run: pip install 'jaxspec\[images\]'"):
        js.summary.image("x", np.zeros((1, 1, 1)), step=0)


def test_histogram_counts_every_entry(writer, tmp_path):
    data = np.random.default_rng(0).normal(size=(40, 25)).astype(np.float32)
    js.summary.histogram("x", jnp.asarray(data), step=4)
    writer.flush()
    (event,) = read(tmp_path).Histograms("x")
    histogram = event.histogram_value
    assert (event.step, histogram.num, sum(histogram.bucket)) == (4, 1000, 1000)
    np.testing.assert_allclose(
        [histogram.min, histogram.max, histogram.sum], [data.min(), data.max(), data.sum()], 1e-4
    )
    expected, _ = np.histogram(data.astype(np.float64), 30)
    np.testing.assert_array_equal([count for count in histogram.bucket if count], expected[expected > 0])


@pytest.mark.parametrize(
    "data",
    [[3.0] * 5, [1e20] * 5, [1.0, np.nextafter(1.0, 2), 1.0, 1.0, 1.0], [0.0, 1e-3, 2e-3, 3e-3, 3e38]],
    ids=["constant", "large constant", "neighbours", "far apart"],
)
def test_histogram_of_awkward_numbers(writer, tmp_path, data):
    js.summary.histogram("x", data, step=0)
    writer.flush()
    histogram = read(tmp_path).Histograms("x")[0].histogram_value
    assert sum(histogram.bucket) == 5
    assert (histogram.min, histogram.max) == (min(data), max(data))


def test_histogram_leaves_out_what_is_not_finite(writer, tmp_path, caplog):
    for step in range(2):
        js.summary.histogram("x", [1.0, np.nan, 2.0, np.inf], step=step)
    js.summary.histogram("nothing", [np.nan], step=0)
    js.summary.histogram("empty", [], step=0)
    writer.flush()
    assert [event.histogram_value.num for event in read(tmp_path).Histograms("x")] == [2, 2]
    assert read(tmp_path).Tags()["histograms"] == ["x"]
    assert caplog.text.count("Histogram x, step 0: 2 of 4 values are not finite and are left out") == 1
    assert "step 1" not in caplog.text


def test_text(writer, tmp_path):
    js.summary.text("note", "**bold** ä", step=2)
    writer.flush()
    events = read(tmp_path)
    (event,) = events.Tensors("note/text_summary")
    assert (event.step, event.tensor_proto.string_val[0].decode()) == (2, "**bold** ä")
    assert events.PluginTagToContent("text").keys() == {"note/text_summary"}


def test_text_refuses_what_is_no_string(writer):
    with pytest.raises(TypeError, match=r"summary.text\('x'\): got int, expected a str. Write str\(data\)"):
        js.summary.text("x", 3, step=0)


# Which writer, which step.

WRITE = {
    "scalar": lambda **kwargs: js.summary.scalar("x", 1.0, **kwargs),
    "image": lambda **kwargs: js.summary.image("x", np.zeros((1, 1, 3)), **kwargs),
    "histogram": lambda **kwargs: js.summary.histogram("x", [1.0, 2.0], **kwargs),
    "text": lambda **kwargs: js.summary.text("x", "a", **kwargs),
}
kinds = pytest.mark.parametrize("kind", WRITE)


def steps_written(logdir):
    """The steps of all summaries in a directory, in the order of the file."""
    create_file_writer(logdir).flush()
    paths = [entry.path for entry in os.scandir(logdir)] if os.path.isdir(logdir) else []
    return [event.step for path in paths for event in EventFileLoader(path).Load() if event.summary.value]


@kinds
def test_the_run_gives_writer_and_step(tmp_path, kind):
    with run_position(5, create_file_writer(tmp_path)):
        WRITE[kind]()
        WRITE[kind](step=8)
    assert steps_written(tmp_path) == [5, 8]


@kinds
def test_a_default_writer_goes_before_that_of_the_run(tmp_path, kind):
    with run_position(5, create_file_writer(tmp_path / "run")), create_file_writer(tmp_path / "mine").as_default():
        WRITE[kind]()
    assert steps_written(tmp_path / "run") == []
    assert steps_written(tmp_path / "mine") == [5]


@kinds
def test_an_evaluation_gives_writer_and_step_too(tmp_path, kind):
    with run_position(5, create_file_writer(tmp_path / "eval"), in_evaluation=True):
        WRITE[kind]()
        with create_file_writer(tmp_path / "mine").as_default():
            WRITE[kind]()
    assert steps_written(tmp_path / "eval") == steps_written(tmp_path / "mine") == [5]


@kinds
def test_a_step_may_come_once_for_each_shard(writer, tmp_path, kind):
    WRITE[kind](step=np.array([4, 4], np.int32))
    assert steps_written(tmp_path) == [4]
    with pytest.raises(
        ValueError,
        match=rf"summary.{kind}\('x'\): step has 3 entries, of which these differ: \[4, 5\]; expected one value",
    ):
        WRITE[kind](step=np.array([4, 5, 4]))


@kinds
def test_errors_without_writer_and_without_step(tmp_path, kind):
    with pytest.raises(
        ValueError, match=rf"summary.{kind}\('x'\): no writer. Write `with summary.create_file_writer\("
    ):
        WRITE[kind](step=0)
    with (
        create_file_writer(tmp_path).as_default(),
        pytest.raises(ValueError, match=rf"summary.{kind}\('x'\): no step; outside host_call pass step="),
    ):
        WRITE[kind]()


@pytest.mark.parametrize("kind", ["scalar", "image", "histogram"])
def test_inside_model_fn_the_error_names_host_call(writer, kind):
    def traced(x):
        getattr(js.summary, kind)("x", x, step=0)
        return x

    with pytest.raises(
        TypeError, match=rf"summary.{kind}\('x'\): got float32\[2\] of a model_fn.*host_call=\(fn, \[tensor\]"
    ):
        jax.jit(traced)(jnp.zeros(2))


@kinds
def test_user_tags_are_what_user_code_wrote(tmp_path, kind):
    run = create_file_writer(tmp_path)
    run.scalar("automatic", 1.0, 0)
    assert run.user_tags == set()
    with run_position(0, run):
        with record_if(False):
            WRITE[kind]()
        assert run.user_tags == set()
        WRITE[kind]()
    assert run.user_tags == {"x"}


# record_if


@pytest.mark.parametrize(
    ("condition", "written"),
    [
        (True, True),
        (False, False),
        (np.bool_(False), False),
        (np.array([True]), True),
        (np.array([False]), False),
        (jnp.array([True, True]), True),
        (lambda: False, False),
        (lambda: np.array([True, True]), True),
    ],
)
@kinds
def test_record_if(writer, tmp_path, kind, condition, written):
    with record_if(condition):
        WRITE[kind](step=1)
    assert steps_written(tmp_path) == [1] * written
    WRITE[kind](step=2)
    assert steps_written(tmp_path) == [1] * written + [2]


def test_the_innermost_record_if_counts(writer, tmp_path):
    with record_if(False):
        with record_if(True):
            js.summary.scalar("x", 1, step=0)
        js.summary.scalar("x", 1, step=1)
    with record_if(True), record_if(lambda: False):
        js.summary.scalar("x", 1, step=2)
    assert [step for step, _ in scalars(tmp_path)] == [0]


def test_a_function_is_asked_at_every_summary(writer, tmp_path):
    answers = iter([True, False, True])
    with record_if(lambda: next(answers)):
        for step in range(3):
            js.summary.scalar("x", 1, step=step)
    assert [step for step, _ in scalars(tmp_path)] == [0, 2]


@pytest.mark.parametrize(("condition", "entries"), [(np.array([True, False]), 2), (np.array([], bool), 0)])
def test_a_condition_that_differs_between_shards_is_refused(writer, condition, entries):
    message = (
        rf"summary.record_if: the condition has {entries} entries, of which these differ: .*Reduce it, .* \.all\(\)"
    )
    with pytest.raises(ValueError, match=message), record_if(condition):
        pass
    with pytest.raises(ValueError, match=message), record_if(lambda: condition):
        js.summary.scalar("x", 1, step=0)


# host_call


def test_host_call_writes_scalars_and_histograms_by_their_shape_on_the_shard(tmp_path):
    def model_fn(variables, features, mode):
        spec = counting_model_fn(variables, features, mode)
        shard = jax.lax.axis_index(js.SHARD_AXIS).astype(jnp.float32)
        host_call = js.summary.host_call(shard=shard, one=shard[None], rows=features["x"] + shard, nothing=None)
        return spec._replace(host_call=host_call)

    estimator = js.TPUEstimator(
        model_fn,
        counting_init,
        model_dir=tmp_path,
        config=run_config(num_shards=2),
        train_batch_size=4,
        eval_batch_size=4,
    )
    estimator.train(counting_input(), steps=2)
    estimator.evaluate(counting_input(2))
    events = read(tmp_path)
    for tag in ("shard", "one"):
        assert [(event.step, event.value) for event in events.Scalars(tag)] == [(0, 0.5), (1, 0.5)]
    assert events.Tags()["histograms"] == ["rows"]
    assert [
        (event.step, event.histogram_value.num, event.histogram_value.min, event.histogram_value.max)
        for event in events.Histograms("rows")
    ] == [(0, 4, 0, 1), (1, 4, 1, 2)]
    assert create_file_writer(tmp_path).user_tags == {"shard", "one", "rows"}
    in_evaluation = read(estimator.eval_dir()).Tags()
    assert (set(in_evaluation["scalars"]), in_evaluation["histograms"]) == ({"loss", "mean_x"}, [])


def test_host_call_writes_nothing_in_evaluation_even_with_a_default_writer(writer, tmp_path):
    fn, tensors = js.summary.host_call(x=np.float32(1))
    with run_position(3, create_file_writer(tmp_path), in_evaluation=True):
        fn(**tensors)
    assert steps_written(tmp_path) == []


def test_host_call_obeys_record_if(tmp_path):
    fn, tensors = js.summary.host_call(x=np.float32(1), y=2.0)
    for step in range(4):
        with run_position(step, create_file_writer(tmp_path)), record_if(step % 2 == 1):
            fn(**tensors)
    assert scalars(tmp_path, "x") == [(1, 1.0), (3, 1.0)]
    assert scalars(tmp_path, "y") == [(1, 2.0), (3, 2.0)]


def test_host_call_without_writer():
    fn, tensors = js.summary.host_call(x=np.float32(1), y=np.float32(1))
    with pytest.raises(ValueError, match=r"summary.host_call\('x, y'\): no writer"):
        fn(**tensors)


def test_host_call_refuses_what_is_no_array():
    with pytest.raises(
        TypeError, match=r"summary.host_call: x is a dict; expected an array or a number. Pass each array"
    ):
        js.summary.host_call(x={"a": np.zeros(2)})


# The writer


def test_there_is_one_writer_of_a_directory_whatever_its_arguments(tmp_path):
    writer = create_file_writer(tmp_path)
    assert create_file_writer(str(tmp_path), max_queue=3, flush_millis=100) is writer
    assert create_file_writer(tmp_path / "other") is not writer


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"max_queue": 0}, "create_file_writer: max_queue is 0; expected 1 or more, or None for no limit"),
        ({"flush_millis": -1}, "create_file_writer: flush_millis is -1; expected 0 or more, in milliseconds"),
    ],
)
def test_limits_that_make_no_sense(tmp_path, kwargs, message):
    with pytest.raises(ValueError, match=message):
        create_file_writer(tmp_path, **kwargs)


def test_max_queue_events_are_flushed_together(tmp_path):
    writer, visible = create_file_writer(tmp_path, max_queue=3), []
    for step in range(7):
        writer.scalar("x", 1.0, step)
        visible.append(len(read_scalars(tmp_path)))
    assert visible == [0, 0, 3, 3, 3, 6, 6]
    create_file_writer(tmp_path)  # leaves the limit as it is
    for step in (7, 8):
        writer.scalar("x", 1.0, step)
    assert len(read_scalars(tmp_path)) == 9


def test_events_are_flushed_when_the_time_is_over(tmp_path):
    now, visible = [0.0], []
    writer = SummaryWriter(str(tmp_path), clock=lambda: now[0])
    for step, now[0] in enumerate([9.9, 10.0, 19.9, 20.0]):
        writer.scalar("x", 1.0, step)
        visible.append(len(read_scalars(tmp_path)))
    assert visible == [0, 2, 2, 4]
    writer.flush_when(flush_millis=500)
    for step, now[0] in enumerate([20.4, 20.5], 4):
        writer.scalar("x", 1.0, step)
    assert len(read_scalars(tmp_path)) == 6
    writer.close()


def test_after_the_directory_was_removed_a_new_file_is_begun(tmp_path):
    now = [0.0]
    writer = SummaryWriter(str(tmp_path / "logs"), clock=lambda: now[0])

    def clear():
        for path in (tmp_path / "logs").iterdir():
            path.unlink()  # and the directory is there, as when a checkpoint was written into a new one

    writer.scalar("x", 1.0, 0)
    writer.flush()  # as at the end of a run
    clear()
    writer.scalar("x", 2.0, 1)
    writer.flush()
    assert scalars(tmp_path / "logs") == [(1, 2.0)]
    # Within a run it takes a second to be noticed.
    writer.scalar("x", 3.0, 2)
    clear()
    now[0] = 1.0
    writer.scalar("x", 4.0, 3)
    writer.flush()
    writer.close()
    assert scalars(tmp_path / "logs") == [(3, 4.0)]


def test_writing_after_close_begins_another_file(tmp_path):
    writer = create_file_writer(tmp_path)
    writer.scalar("x", 1.0, 0)
    writer.close()
    writer.scalar("x", 2.0, 1)
    assert len(list(tmp_path.iterdir())) == 2
    assert scalars(tmp_path) == [(0, 1.0), (1, 2.0)]


def test_writing_after_a_release_appends_to_the_file(tmp_path):
    writer = create_file_writer(tmp_path)
    writer.release()  # there is none yet
    for step in range(3):
        writer.scalar("x", 1.0, step)
        writer.release()
        assert not [name for name in open_files() if name.startswith(str(tmp_path))]
        assert len(read_scalars(tmp_path)) == step + 1
    assert len(list(tmp_path.iterdir())) == 1
    (path,) = tmp_path.iterdir()
    path.unlink()
    writer.scalar("x", 2.0, 3)  # the file was removed: another one
    writer.release()
    writer.close()
    writer.scalar("x", 3.0, 4)
    assert len(list(tmp_path.iterdir())) == 2
    assert scalars(tmp_path) == [(3, 2.0), (4, 3.0)]


def open_files():
    links = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
    return [os.readlink(link) for link in links if os.path.islink(link)]


class GivingWay(io.FileIO):
    """A file that lets another thread run after each of the writes that make up a record, and when it is closed."""

    def write(self, data):
        written = super().write(data)
        time.sleep(0)
        return written

    def close(self):
        super().close()
        time.sleep(1e-4)


def test_two_threads_write_and_a_third_closes(tmp_path, monkeypatch):
    monkeypatch.setattr(event_file, "open_to_write", lambda path: GivingWay(path, "wb"))
    writer, count, together = create_file_writer(tmp_path, max_queue=50), 300, threading.Barrier(3)

    def write(tag):
        together.wait()
        for step in range(count):
            writer.scalar(tag, step, step)

    def close():
        together.wait()
        for _ in range(20):
            writer.close()
            time.sleep(1e-3)

    threads = [threading.Thread(target=write, args=(tag,)) for tag in "ab"] + [threading.Thread(target=close)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.flush()
    assert read_scalars(tmp_path) == {step: {"a": step, "b": step} for step in range(count)}


def test_writers_are_closed_when_the_program_ends(tmp_path):
    # Exit functions run in reverse order, so os._exit runs after ours and nothing else is closed.
    code = f"""
import atexit, os
atexit.register(os._exit, 0)
from jaxspec.summary import create_file_writer
create_file_writer({str(tmp_path)!r}).scalar("x", 1.0, 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert read_scalars(tmp_path) == {0: {"x": 1.0}}


# The reader


def test_read_scalars_of_files_of_ours(tmp_path):
    writer = create_file_writer(tmp_path)
    writer.scalar("loss", 1.0, 10)
    writer.scalar("loss", 3.0, 5)
    writer.scalars({"global_step/sec": 7.5, "loss": 2.0}, 10)
    writer.text("note", "a", 11)
    writer.histogram("h", [1.0, 2.0], 12)
    writer.close()
    writer.scalar("loss", 4.0, 5)
    writer.flush()
    (tmp_path / "eval").mkdir()
    create_file_writer(tmp_path / "eval").scalar("loss", 9.0, 1)
    found = read_scalars(str(tmp_path))
    assert found == {5: {"loss": 4.0}, 10: {"loss": 2.0, "global_step/sec": 7.5}}
    assert list(found) == [5, 10]


def test_read_scalars_of_a_file_of_tensorboard(tmp_path):
    writer = tensorboard.summary.Writer(str(tmp_path))
    writer.add_scalar("loss", 0.5, 3)
    writer.add_scalar("loss", np.float64(0.25), 4)
    writer.close()
    assert read_scalars(tmp_path) == {3: {"loss": 0.5}, 4: {"loss": 0.25}}


def test_read_scalars_of_the_form_that_tensorflow_2_writes(tmp_path):
    event = Event(step=6)
    value = event.summary.value.add(tag="loss")
    value.metadata.plugin_data.plugin_name = "scalars"
    value.tensor.tensor_content = np.float32(1.5).tobytes()
    value.tensor.dtype = 1
    other = event.summary.value.add(tag="curve")
    other.metadata.plugin_data.plugin_name = "pr_curves"
    other.tensor.float_val.append(1.0)
    writer = EventFileWriter(str(tmp_path))
    writer.add_event(event)
    writer.close()
    assert read(tmp_path).Tensors("loss")[0].tensor_proto.tensor_content == value.tensor.tensor_content
    assert read_scalars(tmp_path) == {6: {"loss": 1.5}}


def test_files_are_read_in_the_order_in_which_they_were_begun(tmp_path):
    writer = create_file_writer(tmp_path)
    for value, name in ((1.0, "z.tfevents"), (2.0, "a.tfevents")):
        writer.scalar("x", value, 0)
        writer.close()
        (path,) = tmp_path.glob("events.out.tfevents.*")
        path.rename(tmp_path / name)
    assert read_scalars(tmp_path) == {0: {"x": 2.0}}


def test_a_directory_that_does_not_exist_holds_nothing(tmp_path):
    assert read_scalars(tmp_path / "none") == {}
    assert read_scalars(tmp_path) == {}


def two_steps(tmp_path):
    """The path of a file with steps 0 and 1, and its bytes."""
    writer = create_file_writer(tmp_path)
    writer.scalar("x", 1.0, 0)
    writer.scalar("x", 2.0, 1)
    writer.close()
    (path,) = tmp_path.iterdir()
    return path, path.read_bytes()


@pytest.mark.parametrize("missing", [1, 4, 5, 20, 30, 37])
def test_a_file_that_breaks_off_is_read_up_to_there(tmp_path, caplog, missing):
    path, whole = two_steps(tmp_path)
    path.write_bytes(whole[:-missing])
    assert read_scalars(tmp_path) == {0: {"x": 1.0}}
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("jaxspec", logging.WARNING)
    assert str(path) in record.message
    assert "it breaks off inside the record at byte" in record.message


@pytest.mark.parametrize("back", [1, 10, 28, 36])
def test_a_wrong_checksum_ends_the_file(tmp_path, caplog, back):
    path, whole = two_steps(tmp_path)
    path.write_bytes(whole[:-back] + bytes([whole[-back] ^ 1]) + whole[len(whole) - back + 1 :])
    assert read_scalars(tmp_path) == {0: {"x": 1.0}}
    assert caplog.text.count("wrong checksum at byte") == 1


def test_a_file_without_a_whole_record_is_passed_over_with_one_warning(tmp_path, caplog):
    path, whole = two_steps(tmp_path)
    path.write_bytes(whole[:10])
    assert read_scalars(tmp_path) == {}
    assert caplog.text.count("it breaks off inside the record at byte 0") == 1


def test_an_empty_file_is_passed_over(tmp_path, caplog):
    (tmp_path / "events.out.tfevents.1.host").touch()
    two_steps(tmp_path / "other")
    assert read_scalars(tmp_path) == {}
    assert caplog.records == []


def test_the_automatic_loss_is_back_when_host_call_no_longer_writes_one(tmp_path):
    def model_fn(variables, features, mode):
        spec = counting_model_fn(variables, features, mode)
        return spec._replace(host_call=js.summary.host_call(loss=spec.loss))

    for fn in (model_fn, counting_model_fn):
        js.TPUEstimator(
            fn, counting_init, model_dir=tmp_path, train_batch_size=4, config=run_config(save=100, save_summary_steps=1)
        ).train(counting_input(), steps=3)
    # host_call writes at the step before the update, the library at the one after.
    assert [step for step, _ in scalars(tmp_path, "loss")] == [0, 1, 2, 4, 5, 6]


def test_what_was_written_behind_the_checkpoint_of_a_restart_is_not_shown(tmp_path):
    def train(steps):
        js.TPUEstimator(
            counting_model_fn,
            counting_init,
            model_dir=tmp_path,
            train_batch_size=4,
            config=run_config(save=5, every=1, save_summary_steps=1),
        ).train(counting_input(), max_steps=steps)

    train(10)
    shutil.rmtree(tmp_path / "model.ckpt-10")  # as if the first run had been killed at step 10
    train(8)
    # The second run began its input anew, at 5.
    assert scalars(tmp_path, "loss") == [(1, 0), (2, 1), (3, 2), (4, 3), (5, 4), (6, 0), (7, 1), (8, 2)]


def test_a_name_that_is_none(writer):
    with pytest.raises(TypeError, match="summary.scalar: the name must be a str, got ndarray. The name comes first"):
        js.summary.scalar(np.ones(2), "x", step=0)
