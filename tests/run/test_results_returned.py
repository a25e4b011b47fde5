"""A result that is computed is returned, whatever fails in logging it or writing it down."""

import errno
import logging
import os

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import counting_init, counting_input, counting_model_fn, run_config

import jaxspec as js
from jaxspec.hooks import read_eval_metrics


def make_estimator(model_dir, metrics=None, **config):
    """The counting model; `metrics` are evaluated beside `mean_x`, a dict `name -> function of all x`."""

    def model_fn(variables, features, mode):
        spec = counting_model_fn(variables, features, mode)

        def metric_fn(x):
            collected = {name: js.metrics.collect(lambda x, fn=fn: fn(x), x=x) for name, fn in (metrics or {}).items()}
            return {"mean_x": js.metrics.mean(x), **collected}

        return spec._replace(eval_metrics=(metric_fn, [features["x"]]))

    config = run_config(num_shards=1, **config)
    return js.TPUEstimator(
        model_fn, counting_init, model_dir=model_dir, config=config, train_batch_size=4, eval_batch_size=4
    )


def warnings_of(caplog):
    return [r.getMessage() for r in caplog.records if r.name == "jaxspec" and r.levelno == logging.WARNING]


class Odd:
    """An object that refuses to be shown, compared, or made an array."""

    def __repr__(self):
        raise RuntimeError("not to be shown")

    __str__ = __array__ = __len__ = __repr__


ODD = Odd()
ANYTHING = {
    "ragged": [[1], [1, 2]],
    "nothing": None,
    "text": "abc",
    "long_text": "abc" * 10_000,
    "nested": [{"a": [1, {"b": None}]}],
    "odd": ODD,
    "function": len,
    "texts": np.array(["a", "b"]),
    "objects": np.array([None, {}], object),
    "ragged_arrays": [np.zeros(2), np.zeros((3, 4))],
    "set": {1, 2},
    "complex": 1 + 2j,
    "empty": [],
    "large": np.arange(1000),
    "half": jnp.bfloat16(1.5),
}


@pytest.mark.parametrize("level", [logging.WARNING, logging.INFO])
def test_a_metric_may_be_anything(tmp_path, caplog, level):
    caplog.set_level(level, "jaxspec")
    estimator = make_estimator(tmp_path, {name: lambda x, value=value: value for name, value in ANYTHING.items()})
    results = estimator.evaluate(counting_input(2))
    assert results.keys() == {*ANYTHING, "mean_x", "loss", "global_step"}
    assert all(results[name] is value for name, value in ANYTHING.items())
    assert results["mean_x"] == 0.5
    written = read_eval_metrics(estimator.eval_dir())[0]
    assert {"mean_x": 0.5, "loss": 0.5, "half": 1.5}.items() <= written.items()
    skipped = [line for line in warnings_of(caplog) if line.startswith("Skipping summary for")]
    not_numbers = ANYTHING.keys() - {"empty", "large", "half"}
    assert {line.split(":")[0].removeprefix("Skipping summary for ") for line in skipped} == not_numbers
    assert all("It is returned as it is" in line for line in skipped)


def test_a_dict_that_the_function_of_collect_returns_becomes_metrics(tmp_path):
    estimator = make_estimator(tmp_path, {"rouge": lambda x: {"L": x.max(), 1: 2.0}, "nothing": lambda x: {}})
    results = estimator.evaluate(counting_input(2))
    assert results == {"mean_x": 0.5, "rouge/L": 1.0, "rouge/1": 2.0, "loss": 0.5, "global_step": 0}
    assert read_eval_metrics(estimator.eval_dir())[0].items() >= {"rouge/L": 1.0, "rouge/1": 2.0}.items()


def test_dicts_in_such_a_dict_become_metrics_too(tmp_path):
    report = {"accuracy": 0.5, "class 0": {"precision": 0.25, "recall": 1.0}}  # as scikit-learn's classification_report
    results = make_estimator(tmp_path, {"report": lambda x: report}).evaluate(counting_input(2))
    del results["mean_x"], results["loss"], results["global_step"]
    assert results == {"report/accuracy": 0.5, "report/class 0/precision": 0.25, "report/class 0/recall": 1.0}


def test_a_dict_with_two_keys_of_one_name_stays_one_result(tmp_path, caplog):
    results = make_estimator(tmp_path, {"a": lambda x: {1: 2.0, "1": 3.0}}).evaluate(counting_input(2))
    assert results["a"] == {1: 2.0, "1": 3.0}
    assert any("which stays one result: metric_fn has another metric named a/1" in line for line in warnings_of(caplog))


def test_a_dict_with_the_key_of_another_metric_stays_one_result(tmp_path, caplog):
    estimator = make_estimator(tmp_path, {"a": lambda x: {"b": 1, "c": 2}, "a/b": lambda x: 3})
    results = estimator.evaluate(counting_input(2))
    assert (results["a"], results["a/b"]) == ({"b": 1, "c": 2}, 3)
    assert warnings_of(caplog)[-2] == (
        "The function of collect under 'a' returned a dict, which stays one result: metric_fn has another metric named "
        "a/b. Rename it."
    )


def test_results_come_back_where_the_directory_cannot_be_written(tmp_path, caplog):
    estimator = make_estimator(tmp_path)
    estimator.train(counting_input(), steps=2)
    (tmp_path / "eval").write_text("in the way")
    caplog.clear()
    assert estimator.evaluate(counting_input(3)) == {"mean_x": 1.0, "loss": 1.0, "global_step": 2}
    (line,) = warnings_of(caplog)
    assert str(tmp_path / "eval") in line
    assert "make the directory writable, or use another one" in line


def test_an_unwritable_directory_is_told_before_the_first_batch(tmp_path, caplog, monkeypatch):
    told = []
    real = os.access

    def access(path, mode, **kwargs):  # as of a directory of somebody else's; root may write to any
        return not mode & os.W_OK and real(path, mode, **kwargs)

    monkeypatch.setattr(os, "access", access)
    estimator = make_estimator(tmp_path, {"n": lambda x: len(x)})

    class Watching(js.hooks.SessionRunHook):
        def before_run(self, run_context):
            told.append(len([line for line in warnings_of(caplog) if "Summaries cannot be written" in line]))

    monkeypatch.setattr(os, "supports_effective_ids", {access})
    assert estimator.evaluate(counting_input(2), hooks=[Watching()])["n"] == 8
    assert told[0] == 1
    assert len([line for line in warnings_of(caplog) if "Summaries cannot be written" in line]) == 1


@pytest.mark.parametrize("failing", ["scalars", "text", "release", "array"])
def test_results_come_back_whatever_the_writer_raises(tmp_path, caplog, monkeypatch, failing):
    def fails(*args, **kwargs):
        raise RuntimeError("scripted")

    estimator = make_estimator(tmp_path, save=1)
    estimator.train(counting_input(), steps=1)
    monkeypatch.setattr(js.summary.create_file_writer(estimator.eval_dir()), failing, fails)
    assert estimator.evaluate(counting_input(1))["mean_x"] == 0
    monkeypatch.undo()
    assert any("scripted" in line and "are returned" in line for line in warnings_of(caplog))


def test_training_goes_on_where_summaries_cannot_be_written(tmp_path, caplog, monkeypatch):
    """The disk is full for summaries alone; a checkpoint's error would be its own."""

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device", path)

    monkeypatch.setattr("jaxspec._src.summary.event_file.open_to_write", full)
    estimator = make_estimator(tmp_path, every=2, save_summary_steps=1)
    estimator.train(counting_input(), steps=6)
    assert estimator.get_variable_value("params/w") == 6
    assert ["No space left on device" in line for line in warnings_of(caplog)] == [True]


def test_the_error_of_a_run_is_raised_and_not_that_of_its_summaries(tmp_path, caplog, monkeypatch):
    class Failing(js.hooks.SessionRunHook):
        def after_run(self, run_context, run_values):
            monkeypatch.setattr(
                os, "fsync", lambda number: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error"))
            )
            raise KeyError("the first error")

    estimator = make_estimator(tmp_path, every=2, save_summary_steps=1)
    with pytest.raises(KeyError, match="the first error"):
        estimator.train(counting_input(), steps=6, hooks=[Failing()])
    monkeypatch.undo()
    assert any("Input/output error" in line for line in warnings_of(caplog))
