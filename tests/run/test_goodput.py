"""The shares of the time of a training, by a clock that the test moves."""

import itertools
import logging
import threading

import numpy as np
import pytest
from tiny_models import counting_init, counting_model_fn, run_config

import jaxspec as js
from jaxspec._src.base.activities import TimeSpent, doing
from jaxspec._src.run import goodput as goodput_module
from jaxspec._src.run.goodput import Goodput
from jaxspec._src.run.training_clock import TrainingClock
from jaxspec._src.summary.event_reader import read_scalars


class Time:
    """A clock that the test moves."""

    now = 0.0

    def __call__(self):
        return self.now

    def spend(self, seconds, *activities):
        """Lets time pass within these activities, the outermost first."""
        if activities:
            with doing(activities[0]):
                self.spend(seconds, *activities[1:])
        else:
            self.now += seconds


@pytest.fixture
def time():
    return Time()


@pytest.fixture
def goodput(time):
    goodput = Goodput(time)
    with goodput.measured():
        yield goodput


def test_the_innermost_activity_counts_and_other_threads_do_not(time):
    spent = TimeSpent(time)
    time.now += 1
    spent.begin("outer")
    time.now += 2
    assert spent.begin("inner") == "outer"
    time.now += 4
    thread = threading.Thread(target=spent.begin, args=["elsewhere"])
    thread.start()
    thread.join()
    time.now += 8
    spent.begin("outer")
    time.now += 16
    assert spent.seconds() == {"": 1, "outer": 18, "inner": 12}


def test_the_whole_time_is_divided(time, goodput):
    goodput.starts_up()
    time.spend(2.0)
    time.spend(1.0, "the input")
    goodput.starts_loops(None)
    time.spend(4.0, "compilation")
    time.spend(40.0)
    time.spend(30.0, "the devices")
    time.spend(10.0, "the input")
    time.spend(3.0, "host_call")
    time.spend(5.0, "hook CheckpointSaverHook.after_run", "the checkpoint")
    time.spend(2.0, "hook Mine.after_run")
    time.spend(2.6, "hook Mine.after_run", "the devices")
    time.spend(0.4, "process 1")
    assert goodput.describe() == (
        "100.0 s: 73% steps, 11% input, 5% checkpoints, 4% compilation, 3% host_call, 2% start-up, 2% hooks"
    )


def test_it_begins_anew_after_a_restart_and_goes_on_adding(time, goodput):
    for _ in range(2):
        goodput.starts_up()
        time.spend(1.0)
        goodput.starts_loops(None)
        time.spend(4.0)
    assert goodput.describe() == "10.0 s: 80% steps, 20% start-up"


def test_no_time_at_all(goodput):
    assert goodput.describe() == "0.0 s: "


def test_outside_of_a_training_nothing_is_measured(time):
    goodput = Goodput(time)
    time.spend(3.0, "the input")
    assert goodput.describe() == "3.0 s: 100% steps"


def test_the_shares_of_each_interval_are_written(time, goodput, tmp_path):
    writer = js.summary.create_file_writer(tmp_path)
    goodput.starts_loops(writer)
    time.spend(1000.0, "compilation")
    goodput.loop_ended(10)
    for end in (20, 30, 40):
        time.spend(6.0)
        time.spend(4.0, "the input")
        goodput.loop_ended(end)
    time.spend(9.0)
    time.spend(51.0, "hook Mine.after_run")
    goodput.loop_ended(50)
    time.spend(29.9)
    goodput.loop_ended(60)
    writer.flush()
    found = read_scalars(tmp_path)
    assert found == {
        40: pytest.approx({"goodput/steps": 0.6, "goodput/input": 0.4, "goodput/compilation": 0.0}),
        50: pytest.approx(
            {"goodput/steps": 0.15, "goodput/input": 0.0, "goodput/compilation": 0.0, "goodput/hooks": 0.85}
        ),
    }


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_slow_input_is_a_warning_once(time, goodput, caplog):
    goodput.starts_loops(None)
    goodput.loop_ended(100)
    for end in (1100, 2100):
        time.spend(14.8)
        time.spend(25.2, "the input")
        goodput.loop_ended(end)
    assert warnings(caplog) == [
        "The input takes 63% of each step, 0.0252 of 0.04 s (steps 100 to 1099): the devices have nothing to do "
        "meanwhile. Make input_fn faster: let a loader with workers (Grain, torch, tf.data) prepare the batches, do "
        "less for each of them, or give arrays that fit into memory to jaxspec.inputs.numpy_input_fn. This warning "
        "comes once."
    ]


@pytest.mark.parametrize(("seconds", "warned"), [(25.0, False), (25.1, True)])
def test_an_input_is_slow_from_a_quarter_on(time, goodput, caplog, seconds, warned):
    goodput.starts_loops(None)
    goodput.loop_ended(1)
    time.spend(100.0 - seconds)
    time.spend(seconds, "the input")
    goodput.loop_ended(2)
    assert bool(warnings(caplog)) == warned


def test_the_first_loop_is_no_slow_input(time, goodput, caplog):
    goodput.starts_loops(None)
    time.spend(1000.0, "the input")
    goodput.loop_ended(1)
    time.spend(100.0)
    goodput.loop_ended(2)
    assert warnings(caplog) == []


# Real trainings.


@pytest.fixture
def training_time(time, monkeypatch):
    """The clock of training, moved by the test."""
    monkeypatch.setattr("jaxspec._src.run.train.TrainingClock", lambda: TrainingClock(time))
    return time


def make_estimator(tmp_path, model_fn=counting_model_fn, **config):
    config = run_config(num_shards=1, every=5, **config)
    return js.TPUEstimator(
        model_fn, counting_init, model_dir=tmp_path, config=config, train_batch_size=4, eval_batch_size=4
    )


def batches():
    return ({"x": np.full(4, i, np.float32)} for i in itertools.count())


class Hook(js.hooks.SessionRunHook):
    """Calls something after each loop."""

    def __init__(self, call):
        self.after_run = lambda run_context, run_values: call(run_context)


def last_line(caplog):
    (line,) = (r.getMessage() for r in caplog.records if r.getMessage().startswith("Training took"))
    return line


def test_a_training_ends_with_where_its_time_went(tmp_path, caplog, training_time):
    caplog.set_level(logging.INFO, "jaxspec")

    def input_fn():
        training_time.now += 40.0  # while the caller waits for the first batch
        return batches()

    def model_fn(variables, features, mode):
        training_time.now += 5.0 / calls.pop() if calls else 0.0
        return counting_model_fn(variables, features, mode)

    calls = [1]
    hook = Hook(lambda _: training_time.spend(11.0))
    make_estimator(tmp_path, model_fn).train(input_fn, steps=25, hooks=[hook])
    assert last_line(caplog) == "Training took 100.0 s: 55% hooks, 40% input, 5% start-up."


def test_what_a_hook_waits_for_belongs_to_the_steps(tmp_path, caplog, training_time, monkeypatch):
    """A loss that a hook asks for is waited for, as the devices are still at work."""
    caplog.set_level(logging.INFO, "jaxspec")
    fetch = js._src.run.training_loops.fetch_step

    def slow_fetch(*args, **kwargs):
        training_time.now += 5.0
        return fetch(*args, **kwargs)

    monkeypatch.setattr("jaxspec._src.run.training_loops.fetch_step", slow_fetch)
    hook = Hook(lambda context: context.session.loss)
    make_estimator(tmp_path).train(lambda: batches(), steps=10, hooks=[hook])
    assert last_line(caplog) == "Training took 10.0 s: 100% steps."


def test_evaluations_in_between_do_not_count(tmp_path, caplog, training_time):
    caplog.set_level(logging.INFO, "jaxspec")
    estimator = make_estimator(tmp_path)

    def evaluate(context):
        training_time.now += 1.0

        def slow_input():
            training_time.now += 1000.0
            return itertools.islice(batches(), 2)

        estimator.evaluate(slow_input)

    estimator.train(lambda: batches(), steps=10, hooks=[Hook(evaluate)])
    assert last_line(caplog) == "Training took 2.0 s: 100% hooks."


def test_the_summaries_of_a_training_have_the_shares(tmp_path, training_time):
    hook = Hook(lambda _: training_time.spend(20.0))
    make_estimator(tmp_path).train(lambda: batches(), steps=25, hooks=[hook])
    found = {step: values for step, values in read_scalars(tmp_path).items() if "goodput/hooks" in values}
    assert found.keys() == {15, 25}
    assert all(values["goodput/hooks"] == 1.0 for values in found.values())


def test_without_summaries_there_are_none(tmp_path, training_time):
    hook = Hook(lambda _: training_time.spend(goodput_module._INTERVAL_SECS))
    make_estimator(tmp_path, save_summary_steps=None).train(lambda: batches(), steps=25, hooks=[hook])
    assert not any(tag.startswith("goodput") for values in read_scalars(tmp_path).values() for tag in values)
