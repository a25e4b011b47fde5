"""A user's own writers: what they get from train, evaluate, train_and_evaluate and host functions, and their errors."""

import logging
import re
import sys
import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import counting_init, counting_input, counting_model_fn, run_config

import jaxspec as js
from jaxspec.hooks import read_eval_metrics

DOCS = Path(__file__).parents[2] / "docs" / "summaries.md"


class RecordingSink:
    """Keeps what it gets: `calls` are (method, tag, step), `values` the values by these."""

    def __init__(self):
        self.calls, self.values, self.flushes = [], {}, 0

    def _keep(self, method, name, value, step):
        assert type(step) is int
        self.calls.append((method, name, step))
        self.values[method, name, step] = value

    def scalar(self, name, value, step):
        assert type(value) is float
        self._keep("scalar", name, value, step)

    def text(self, name, text, step):
        assert type(text) is str
        self._keep("text", name, text, step)

    def image(self, name, pixels, step):
        assert (pixels.dtype, pixels.ndim) == (np.uint8, 3)
        self._keep("image", name, pixels, step)

    def histogram(self, name, values, step):
        assert (values.dtype, values.ndim) == (np.float64, 1)
        self._keep("histogram", name, values, step)

    def flush(self):
        self.flushes += 1

    def scalars(self, name):
        """{step: value} of a tag."""
        return {step: value for (method, tag, step), value in self.values.items() if (method, tag) == ("scalar", name)}

    def tags(self):
        return {tag for _, tag, _ in self.calls}


def make_estimator(model_dir, *sinks, model_fn=counting_model_fn, save=None, **kwargs):
    config = run_config(save, num_shards=2, writers=list(sinks), **kwargs)
    return js.TPUEstimator(
        model_fn, counting_init, model_dir=model_dir, config=config, train_batch_size=4, eval_batch_size=4
    )


def with_host_call(host_call):
    def model_fn(variables, features, mode):
        return counting_model_fn(variables, features, mode)._replace(host_call=(host_call, [features["x"]]))

    return model_fn


def test_train_writes_the_loss_and_the_rates_to_each_sink(tmp_path):
    sinks = RecordingSink(), RecordingSink()
    estimator = make_estimator(tmp_path, *sinks, every=2, save_summary_steps=2, log_step_count_steps=2)
    estimator.train(counting_input(), steps=6)
    for sink in sinks:
        assert sink.scalars("loss") == {1: 0.0, 3: 2.0, 5: 4.0}
        assert sink.tags() == {"loss", "global_step/sec", "examples/sec"}
        assert sink.flushes == 1
    in_file = {
        (tag, step): value for step, found in read_eval_metrics(tmp_path).items() for tag, value in found.items()
    }
    assert in_file.keys() == {(tag, step) for _, tag, step in sinks[0].calls}


@pytest.mark.parametrize(("name", "prefix"), [(None, "eval/"), ("test", "eval_test/")])
def test_the_tags_of_an_evaluation_begin_with_its_directory(tmp_path, name, prefix):
    sink = RecordingSink()
    estimator = make_estimator(tmp_path, sink, save=100)
    estimator.train(counting_input(), steps=3)
    sink.__init__()
    results = estimator.evaluate(counting_input(2), name=name)
    assert sink.values == {
        ("scalar", f"{prefix}loss", 3): results["loss"],
        ("scalar", f"{prefix}mean_x", 3): results["mean_x"],
        ("text", f"{prefix}checkpoint_path", 3): str(tmp_path / "model.ckpt-3"),
    }
    assert sink.flushes == 1


def test_train_and_evaluate_writes_to_one_sink_in_the_order_of_events(tmp_path):
    sink = RecordingSink()
    estimator = make_estimator(tmp_path, sink, save=2, every=2, save_summary_steps=2)
    js.train_and_evaluate(
        estimator,
        js.TrainSpec(counting_input(), max_steps=4),
        js.EvalSpec(counting_input(2), steps=None, throttle_secs=0, start_delay_secs=0),
    )
    losses = [(tag, step) for _, tag, step in sink.calls if tag in ("loss", "eval/loss")]
    assert losses == [("loss", 1), ("eval/loss", 2), ("loss", 3), ("eval/loss", 4)]
    assert sink.flushes == 3  # two evaluations and the training


def test_host_functions_write_every_kind_where_record_if_holds(tmp_path):
    def host_call(x):
        with js.summary.record_if(x[0] % 2 == 1):
            js.summary.scalar("mean", x)
            js.summary.text("words", f"**{x[0]:g}**")
            js.summary.image("pixels", np.full((1, 2, 3, 1), x[0] / 10))
            js.summary.histogram("values", [*x, np.nan])

    sink = RecordingSink()
    estimator = make_estimator(tmp_path, sink, model_fn=with_host_call(host_call), save_summary_steps=None)
    estimator.train(counting_input(), steps=4)
    assert sink.calls == [
        (method, tag, step)
        for step in (1, 3)
        for method, tag in (("scalar", "mean"), ("text", "words"), ("image", "pixels"), ("histogram", "values"))
    ]
    assert sink.values["scalar", "mean", 3] == 3.0
    assert sink.values["text", "words", 3] == "**3**"
    np.testing.assert_array_equal(sink.values["image", "pixels", 3], np.full((2, 3, 1), 76, np.uint8))
    np.testing.assert_array_equal(sink.values["histogram", "values", 3], [3.0] * 4)
    sink.__init__()
    estimator.evaluate(counting_input(2))
    assert [call for call in sink.calls if call[1] not in ("eval/loss", "eval/mean_x")] == [
        ("scalar", "eval/mean", 4),
        ("text", "eval/words", 4),
        ("image", "eval/pixels", 4),
        ("histogram", "eval/values", 4),
    ]


def test_summary_host_call_writes_in_training_alone(tmp_path):
    def model_fn(variables, features, mode):
        spec = counting_model_fn(variables, features, mode)
        return spec._replace(host_call=js.summary.host_call(loss=spec.loss, rows=features["x"]))

    sink = RecordingSink()
    estimator = make_estimator(tmp_path, sink, model_fn=model_fn, save_summary_steps=1)
    estimator.train(counting_input(), steps=2)
    assert sink.scalars("loss") == {0: 0.0, 1: 1.0}  # no automatic loss beside it
    assert sink.calls.count(("histogram", "rows", 1)) == 1
    estimator.evaluate(counting_input(1))
    assert not {"eval/rows", "rows"} & {tag for _, tag, step in sink.calls if step == 2}


def test_the_writer_of_the_runs_own_directory_means_the_run(tmp_path):
    """The line that TensorFlow needs in a host_call; another directory is a writer of its own."""

    def host_call(x):
        with js.summary.create_file_writer(tmp_path).as_default():
            js.summary.scalar("of_the_run", x)
        with js.summary.create_file_writer(tmp_path / "other").as_default():
            js.summary.scalar("apart", x)

    sink = RecordingSink()
    make_estimator(tmp_path, sink, model_fn=with_host_call(host_call)).train(counting_input(), steps=1)
    assert ("scalar", "of_the_run", 0) in sink.calls
    assert "apart" not in sink.tags()


def test_hooks_reach_the_sinks_by_the_writer_of_their_session(tmp_path):
    class Writing(js.hooks.SessionRunHook):
        def end(self, session):
            session.summary_writer.array("vector", jnp.arange(2.0), session.global_step)

    sink = RecordingSink()
    estimator = make_estimator(tmp_path, sink)
    hooks = [Writing(), js.hooks.SummarySaverHook(save_steps=100, summary_op={"saved": "loss"})]
    estimator.train(counting_input(), steps=1, hooks=hooks)
    estimator.evaluate(counting_input(1), hooks=hooks)
    assert {"vector/0", "vector/1", "saved", "eval/vector/0", "eval/vector/1", "eval/saved"} <= sink.tags()


# Errors


class FailingSink(RecordingSink):
    """Fails in one method."""

    def __init__(self, method):
        super().__init__()

        def fails(*args):
            raise ConnectionError(f"{method} is scripted to fail")

        setattr(self, method, fails)


def test_in_training_the_exception_comes_back_with_a_note_when_the_other_sinks_have_the_summary(tmp_path):
    failing, other = FailingSink("scalar"), RecordingSink()
    estimator = make_estimator(tmp_path, failing, other, every=1, save_summary_steps=1)
    with pytest.raises(ConnectionError, match="scripted") as caught:
        estimator.train(counting_input(), steps=4)
    assert "raised by FailingSink.scalar, one of RunConfig(writers=...)" in caught.value.__notes__
    assert other.scalars("loss")[1] == 0.0  # what was dispatched meanwhile may follow
    assert read_eval_metrics(tmp_path)[1]["loss"] == 0.0
    assert (failing.flushes, other.flushes) == (1, 1)
    del failing.scalar
    estimator.train(counting_input(), steps=2)
    assert len(failing.scalars("loss")) == 2


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_in_a_host_function_the_exception_names_host_call_and_the_sink(tmp_path, verb):
    sink = FailingSink("text")
    model_fn = with_host_call(lambda x: js.summary.text("words", "a"))
    estimator = make_estimator(tmp_path, sink, model_fn=model_fn)
    with pytest.raises(ConnectionError, match="scripted") as caught:
        getattr(estimator, verb)(counting_input(2))
    notes = "\n".join(caught.value.__notes__)
    assert "raised by FailingSink.text, one of RunConfig(writers=...)" in notes
    assert "raised by host_call" in notes
    assert sink.flushes == 1


@pytest.mark.parametrize("method", ["scalar", "text", "flush"])
def test_results_are_returned_and_written_elsewhere_whatever_a_sink_raises(tmp_path, caplog, method):
    sink, other = RecordingSink(), RecordingSink()
    estimator = make_estimator(tmp_path, sink, other, save=100)
    estimator.train(counting_input(), steps=1)
    setattr(sink, method, getattr(FailingSink(method), method))
    caplog.clear()
    assert estimator.evaluate(counting_input(2))["mean_x"] == 0.5
    assert {"eval/loss", "eval/mean_x", "eval/checkpoint_path"} <= other.tags()
    assert read_eval_metrics(estimator.eval_dir()) == {1: {"loss": 0.5, "mean_x": 0.5}}
    (warning,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert "The results are returned, but not all summaries could be written: ConnectionError: " in warning
    assert f"raised by RecordingSink.{method}, one of RunConfig(writers=...)" in warning


def test_a_training_that_is_done_is_returned_though_the_last_flush_fails(tmp_path, caplog):
    estimator = make_estimator(tmp_path, FailingSink("flush"))
    assert estimator.train(counting_input(), steps=2) is estimator
    assert "ConnectionError: flush is scripted to fail" in caplog.text


def test_the_error_of_a_run_is_raised_and_not_that_of_its_flush(tmp_path):
    def host_call(x):
        raise KeyError("the first error")

    other = RecordingSink()
    estimator = make_estimator(tmp_path, FailingSink("flush"), other, model_fn=with_host_call(host_call))
    with pytest.raises(KeyError, match="the first error") as caught:
        estimator.train(counting_input(), steps=2)
    assert any("and then, of a summary writer: ConnectionError: flush" in note for note in caught.value.__notes__)
    assert other.flushes == 1


# Arguments


@pytest.mark.parametrize(
    ("writers", "message"),
    [
        (
            RecordingSink(),
            r"RunConfig writers must be a list, given: <.*RecordingSink.*Write \[writer\]; a writer has",
        ),
        ("runs/logs", r"RunConfig writers must be a list, given: 'runs/logs'"),
        (
            [RecordingSink(), print],
            r"writers\[1\] is <built-in.*>, without scalar, text, image, histogram, flush; a writer",
        ),
        ([RecordingSink], r"writers\[0\] is <class .*>, a class, not an instance; .*: see jaxspec.summary.Sink"),
        (
            [types.SimpleNamespace(scalar=print, text=print, histogram=print, image=3)],
            r"writers\[0\] is namespace.*, without image, flush; a writer has the methods scalar, text, image, histogram, flush",
        ),
    ],
)
def test_what_is_no_writer_is_refused_by_the_config(writers, message):
    with pytest.raises(TypeError, match=message):
        js.RunConfig(writers=writers)


def test_the_config_keeps_writers_as_a_tuple():
    sink = RecordingSink()
    config = js.RunConfig(writers=[sink])
    assert config.writers == config.replace(tf_random_seed=1).writers == (sink,)
    assert js.RunConfig().writers == ()


# The example of the documentation


def test_the_example_of_the_documentation_writes_to_weights_and_biases(tmp_path, monkeypatch):
    logged = []

    class Run:
        def define_metric(self, name, step_metric):
            assert (name, step_metric) == ("*", "global_step")

        def log(self, values):
            logged.append(values)

    wandb = types.ModuleType("wandb")
    wandb.init = lambda project: Run()
    for kind in ("Html", "Image", "Histogram"):
        setattr(wandb, kind, lambda value, kind=kind: kind)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    (code,) = re.findall(r"^```python\n(import wandb.*?)^```$", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    namespace = {"js": js}
    exec(code, namespace)

    def host_call(x):
        js.summary.image("pixels", np.zeros((1, 1, 3)))
        js.summary.histogram("values", x)
        js.summary.text("words", "a")

    config = namespace["config"].replace(save_checkpoints_steps=None, save_summary_steps=1, model_dir=str(tmp_path))
    estimator = js.TPUEstimator(
        with_host_call(host_call), counting_init, config=config, train_batch_size=4, eval_batch_size=4
    )
    estimator.train(counting_input(), steps=1)
    assert logged == [
        {"pixels": "Image", "global_step": 0},
        {"values": "Histogram", "global_step": 0},
        {"words": "Html", "global_step": 0},
        {"loss": 0.0, "global_step": 1},
    ]
    estimator.evaluate(counting_input(1))
    assert {"eval/loss": 0.0, "global_step": 1} in logged
