"""Data that stays on the devices: the same batches as streamed, bit for bit, resumable, and only where it pays."""

import logging

import jax
import numpy as np
import pytest
from tiny_models import Net as TinyNet
from tiny_models import assert_trees_equal, data, linear_init, linear_model_fn, net_model_fn, run_config

import jaxspec as js
from jaxspec._src.base.errors import NanLossDuringTrainingError
from jaxspec._src.data import input_source
from jaxspec._src.device import stack_buffers
from jaxspec._src.device.stack_buffers import StackBuffers

X, Y = data(rows=40)
LOG = "keeps its arrays on the devices"


def net(model_dir, *, num_shards=2, every=100, save=None, **kwargs):
    return js.TPUEstimator(
        net_model_fn,
        TinyNet(),
        model_dir=model_dir,
        config=run_config(save=save, every=every, num_shards=num_shards, **kwargs),
        train_batch_size=8,
        eval_batch_size=8,
    )


def linear(model_dir):
    return js.TPUEstimator(
        linear_model_fn, linear_init, model_dir=model_dir, config=run_config(num_shards=1), train_batch_size=8
    )


def weights(made):
    return {name: made.get_variable_value(name) for name in made.get_variable_names()}


def input_fn(resident, x=X, y=Y, **kwargs):
    return js.inputs.numpy_input_fn(x, y, num_epochs=None, shuffle=True, seed=3, resident=resident, **kwargs)


@pytest.mark.parametrize("num_shards", [1, 4])
@pytest.mark.parametrize("every", [1, 7, 100])
def test_training_is_the_same_bit_for_bit(tmp_path, num_shards, every):
    streamed = net(tmp_path / "a", num_shards=num_shards).train(input_fn(False), steps=23)  # epochs of 5 batches
    resident = net(tmp_path / "b", num_shards=num_shards, every=every).train(input_fn(True), steps=23)
    assert_trees_equal(weights(resident), weights(streamed))


@pytest.mark.parametrize("first", [True, False])
def test_a_run_is_resumed_with_and_without_it(tmp_path, first):
    undisturbed = net(tmp_path / "a").train(input_fn(False), steps=23)
    net(tmp_path / "b", save=100).train(input_fn(first), steps=9)
    resumed = net(tmp_path / "b").train(input_fn(not first), max_steps=23)
    assert_trees_equal(weights(resumed), weights(undisturbed))


@pytest.mark.parametrize("resident", [True, "auto"])
def test_no_batch_passes_through_the_host(tmp_path, monkeypatch, resident):
    def gather(*args):
        raise AssertionError("a batch was gathered on the host")

    written, write = [], StackBuffers.write
    monkeypatch.setattr(StackBuffers, "gather", gather)
    monkeypatch.setattr(StackBuffers, "write", lambda self, *args: (written.append(1), write(self, *args)))
    linear(tmp_path).train(input_fn(resident), steps=23)
    assert not written


@pytest.mark.parametrize(
    ("resident", "steps", "kept"),
    [("auto", 5, True), ("auto", 4, False), (True, 4, True), (False, 50, False)],
)
def test_auto_keeps_data_that_is_read_once_at_least(tmp_path, caplog, resident, steps, kept):
    caplog.set_level(logging.INFO, "jaxspec")
    linear(tmp_path).train(input_fn(resident), steps=steps)
    found = [record.getMessage() for record in caplog.records if LOG in record.getMessage()]
    assert len(found) == kept
    if kept:
        assert found[0].endswith("for this training: 0.0 MB on each of 1.")


def test_auto_streams_what_does_not_fit(tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "jaxspec")
    monkeypatch.setattr(input_source, "fits_on_devices", lambda size, devices: size < X.nbytes)
    linear(tmp_path).train(input_fn("auto"), steps=50)
    assert LOG not in caplog.text


def test_evaluation_streams(tmp_path, caplog):
    made = net(tmp_path).train(input_fn(True), steps=1)
    caplog.clear()
    caplog.set_level(logging.INFO, "jaxspec")
    found = made.evaluate(js.inputs.numpy_input_fn(X, Y, resident=True))
    assert found == made.evaluate(js.inputs.numpy_input_fn(X, Y, resident=False))
    assert LOG not in caplog.text


def test_each_call_reads_the_arrays_anew(tmp_path):
    x = X.copy()
    fn = input_fn(True, x=x)
    twice = linear(tmp_path / "a").train(fn, steps=5)
    x *= -1
    twice.train(fn, steps=5, resume_input=True)
    streamed = linear(tmp_path / "b").train(input_fn(False), steps=5)
    streamed.train(input_fn(False, x=x), steps=5, resume_input=True)
    assert_trees_equal(weights(twice), weights(streamed))


def test_wide_dtypes_become_narrow(tmp_path):
    wide = linear(tmp_path / "a").train(input_fn(True, X.astype(np.float64), Y.astype(np.int64)), steps=12)
    assert_trees_equal(weights(wide), weights(linear(tmp_path / "b").train(input_fn(False), steps=12)))


@pytest.mark.parametrize("resident", [True, False])
def test_a_number_that_does_not_fit_is_named_as_ever(tmp_path, resident):
    y = Y.astype(np.int64)
    y[5] = 2**40
    with pytest.raises(
        OverflowError, match=r"batch \d+ of input_fn .*labels is int64 and holds values that int32 cannot"
    ):
        linear(tmp_path).train(input_fn(resident, y=y), steps=12)


def test_a_second_call_compiles_nothing(tmp_path):
    made, fn, compiled = linear(tmp_path), input_fn(True), []
    made.train(fn, steps=12).train(fn, steps=12)
    jax.monitoring.register_event_duration_secs_listener(lambda name, _, **kwargs: compiled.append(name))
    try:
        made.train(fn, steps=12)
        assert not [name for name in compiled if "compile" in name]
    finally:
        jax.monitoring.clear_event_listeners()


def test_the_copies_are_gone_after_the_call(tmp_path):
    x = np.zeros((12345, 4), np.float32)
    made = linear(tmp_path)
    made.train(input_fn(True, x=x, y=np.zeros(12345, np.int32)), steps=3)
    assert not [array for array in jax.live_arrays() if array.shape[:1] == (12345,)]


def test_other_values_are_refused():
    with pytest.raises(ValueError, match='numpy_input_fn: resident must be "auto", True or False, got 1.5'):
        js.inputs.numpy_input_fn(X, resident=1.5)


@pytest.mark.parametrize("rows", [8, 16000])  # gathered before the dispatch, and by it
def test_the_next_training_writes_to_the_same_memory_and_sees_what_has_changed(tmp_path, monkeypatch, rows):
    made, empty = [], stack_buffers._aligned
    monkeypatch.setattr(stack_buffers, "_aligned", lambda *args: made.append(args) or empty(*args))
    weights_of = {}
    for resident in (True, False):
        x, y = (np.tile(array, (rows // 8, *[1] * (array.ndim - 1))) for array in (X, Y))
        made_here = js.TPUEstimator(
            *(linear_model_fn, linear_init),
            model_dir=tmp_path / str(resident),
            config=run_config(num_shards=1),
            train_batch_size=rows,
        )
        for turn in range(3):
            made.clear()
            made_here.train(input_fn(resident, x, y), steps=7)
            assert resident is False or len(made) == (2 if turn == 0 else 0)
            x *= 0.5
            y[:] = (y + 1) % 3
        weights_of[resident] = weights(made_here)
    assert_trees_equal(weights_of[True], weights_of[False])


@pytest.mark.parametrize("other", ["more rows", "streamed", "failed"])
def test_memory_is_kept_only_for_arrays_that_fit_and_after_a_training_that_ended_well(tmp_path, other):
    made = linear(tmp_path)
    made.train(input_fn(True), steps=7)
    kept = made._engine._input_memory.resident
    assert [x.shape for x in kept] == [X.shape, Y.shape]
    if other == "more rows":
        made.train(input_fn(True, *data(rows=48)), steps=7)
        assert [len(x) for x in made._engine._input_memory.resident] == [48, 48]
    elif other == "streamed":
        made.train(input_fn(False), steps=7)
        assert not made._engine._input_memory.resident
    else:
        with pytest.raises(NanLossDuringTrainingError):
            made.train(input_fn(True, X * np.nan), steps=7)
        assert not made._engine._input_memory.resident
