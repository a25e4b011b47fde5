"""The rates of training count its own time, and are never negative."""

import itertools
import logging
import threading

import numpy as np
import pytest
from tiny_models import counting_init, counting_input, counting_model_fn, run_config

import jaxspec as js
from jaxspec._src.run.training_clock import TrainingClock
from jaxspec._src.run.training_report import TrainingReport
from jaxspec._src.summary.event_reader import read_scalars


class Time:
    """A clock that the test moves."""

    now = 0.0

    def __call__(self):
        return self.now


def test_the_clock_stands_still_within_and_nowhere_else():
    time = Time()
    clock = TrainingClock(time)
    time.now = 5.0
    with clock.stopped():
        time.now = 7.0
        assert clock() == 5.0
        with clock.stopped():
            time.now = 8.0
        time.now = 9.0
        assert clock() == 5.0
    assert clock() == 5.0
    time.now = 10.0
    assert clock() == 6.0


def test_an_error_within_starts_it_again():
    time = Time()
    clock = TrainingClock(time)

    def fail():
        with clock.stopped():
            time.now = 3.0
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    time.now = 4.0
    assert clock() == 1.0


def test_other_threads_do_not_stop_it():
    time = Time()
    clock = TrainingClock(time)

    def elsewhere():
        with clock.stopped():
            time.now = 5.0
            assert clock() == 5.0

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert clock() == 5.0


def test_rates_are_those_of_the_time_outside(caplog):
    """By hand: 10 steps in 2 s of training, with 100 s of evaluation between, are 5 steps/s."""
    caplog.set_level(logging.INFO, "jaxspec")
    time = Time()
    clock = TrainingClock(time)
    config = js.RunConfig(log_step_count_steps=10, save_summary_steps=None)
    report = TrainingReport(step=0, writer=None, config=config, batch_size=4, bar=None, clock=clock)
    report.log_loop(1, 0.0)
    time.now += 1.0
    with clock.stopped():
        time.now += 100.0
    time.now += 1.0
    report.log_loop(11, 0.0)
    assert [r.getMessage() for r in caplog.records if "/sec" in r.getMessage()] == [
        "global_step/sec: 5",
        "examples/sec: 20",
    ]


def test_flops_are_logged_and_written_with_the_rates(tmp_path, caplog):
    """By hand: 5 steps/s of 2 TFLOP each, where 40 TFLOP/s is the peak."""

    class Chips:
        flops_per_step, peak_flops_per_sec = 2e12, 40e12

    caplog.set_level(logging.INFO, "jaxspec")
    time, writer = Time(), js.summary.create_file_writer(tmp_path)
    config = js.RunConfig(log_step_count_steps=10)
    report = TrainingReport(step=0, writer=writer, config=config, batch_size=4, bar=None, clock=time, compute=Chips())
    report.log_loop(1, 0.0)
    time.now += 2.0
    report.log_loop(11, 0.0)
    logged = [r.getMessage() for r in caplog.records if not r.getMessage().startswith("loss")]
    assert logged == ["global_step/sec: 5", "examples/sec: 20", "TFLOP/sec: 10", "MFU: 0.25"]
    writer.flush()
    assert read_scalars(tmp_path)[11] == {"global_step/sec": 5, "examples/sec": 20, "TFLOP/sec": 10, "MFU": 0.25}


@pytest.fixture
def time(monkeypatch):
    """The clock of training, moved by the test."""
    time = Time()
    monkeypatch.setattr("jaxspec._src.run.train.TrainingClock", lambda: TrainingClock(time))
    return time


def make_estimator(tmp_path):
    config = run_config(num_shards=1, every=5, log_step_count_steps=5)
    return js.TPUEstimator(
        counting_model_fn,
        counting_init,
        model_dir=tmp_path,
        config=config,
        train_batch_size=4,
        eval_batch_size=4,
        predict_batch_size=4,
    )


def slow_input(time, count):
    """Each batch takes 1000 s."""

    def input_fn():
        for i in range(count):
            time.now += 1000.0
            yield {"x": np.full(4, i, np.float32)}

    return input_fn


class Looking(js.hooks.SessionRunHook):
    """Each loop takes 1 s, and then something is looked at."""

    def __init__(self, time, look):
        self._time, self._look = time, look

    def after_run(self, run_context, run_values):
        self._time.now += 1.0
        self._look()


def rates(caplog, tag="global_step/sec"):
    return [float(r.getMessage().split()[-1]) for r in caplog.records if r.getMessage().startswith(tag)]


def test_a_generator_kept_open_over_several_loops_takes_only_what_it_works(tmp_path, caplog, time):
    """Loops of 5 steps in 1 s: 5 steps/s, though the generator lives on and waits for its input."""
    caplog.set_level(logging.INFO, "jaxspec")
    estimator = make_estimator(tmp_path)
    estimator.train(counting_input(), steps=1)
    predictions = estimator.predict(slow_input(time, 100))
    calls = itertools.count()

    def look():
        number = next(calls)
        if number < 4:
            next(predictions)
        elif number == 4:
            predictions.close()

    caplog.clear()
    estimator.train(counting_input(), steps=40, hooks=[Looking(time, look)])
    found = rates(caplog)
    assert len(found) >= 6
    # The input's thread may run ahead while the clock goes; it is never negative, and where the input rests it is
    # exact.
    assert all(rate > 0 for rate in found)
    assert found[-2:] == [5.0, 5.0]
    assert all(rate > 0 for rate in rates(caplog, "examples/sec"))


def test_an_evaluation_of_a_hook_takes_nothing(tmp_path, caplog, time):
    caplog.set_level(logging.INFO, "jaxspec")
    estimator = make_estimator(tmp_path)
    estimator.train(counting_input(), steps=1)
    caplog.clear()
    hook = Looking(time, lambda: estimator.evaluate(slow_input(time, 3)))
    estimator.train(counting_input(), steps=25, hooks=[hook])
    assert rates(caplog)[1:] == [5.0] * len(rates(caplog)[1:])
    assert len(rates(caplog)) >= 3


def test_an_evaluation_of_another_thread_takes_nothing_off(tmp_path, caplog, time):
    """Its 3000 s go by on the clock of training, too, which does not wait for it: the rates stay positive."""
    caplog.set_level(logging.INFO, "jaxspec")
    estimator = make_estimator(tmp_path)
    estimator.train(counting_input(), steps=1)

    def evaluate():
        thread = threading.Thread(target=lambda: estimator.evaluate(slow_input(time, 3)))
        thread.start()
        thread.join()

    caplog.clear()
    estimator.train(counting_input(), steps=20, hooks=[Looking(time, evaluate)])
    found = rates(caplog)
    assert found
    np.testing.assert_allclose(found, 5 / 3001, rtol=1e-3)


def test_a_generator_made_before_training_and_closed_after_it_changes_no_rate(tmp_path, caplog, time):
    caplog.set_level(logging.INFO, "jaxspec")
    estimator = make_estimator(tmp_path)
    estimator.train(counting_input(), steps=1)
    predictions = estimator.predict(counting_input(2))
    next(predictions)
    caplog.clear()
    estimator.train(counting_input(), steps=20, hooks=[Looking(time, lambda: None)])
    assert [row["w"] for row in predictions] == [1.0] * 7
    assert rates(caplog)[1:] == [5.0] * len(rates(caplog)[1:])
    assert len(rates(caplog)) >= 3
