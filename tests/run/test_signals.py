"""Ctrl-C and SIGTERM: heard wherever a run is, never forgotten, whole checkpoints, an end within seconds."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import signal_runs
from tiny_models import counting_init, counting_input, counting_model_fn, run_config

import jaxspec as js
from jaxspec._src.checkpoint.latest import checkpoint_path, checkpoint_steps
from jaxspec.hooks import SessionRunHook


def counting(model_dir, save=2, every=2, **kwargs):
    """The counting model on one device."""
    sizes = dict.fromkeys(("train_batch_size", "eval_batch_size", "predict_batch_size"), 4)
    config = run_config(save=save, every=every, num_shards=1)
    return js.TPUEstimator(counting_model_fn, counting_init, model_dir=model_dir, config=config, **sizes, **kwargs)


def send(signum=signal.SIGINT):
    os.kill(os.getpid(), signum)


def endless(at=None, seconds=0.01, taken=None, do=send):
    """The counting input without an end; `do` is called before batch `at`."""

    def input_fn():
        for i, batch in enumerate(counting_input()()):
            if i == at:
                do()
            if taken is not None:
                taken.append(i)
            yield batch
            time.sleep(seconds)

    return input_fn


@pytest.fixture(autouse=True)
def nothing_is_left():
    handlers = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("jaxspec")] == []
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == handlers


@pytest.fixture
def sigterm_raises():
    """A caller's own handler of SIGTERM."""

    class Terminated(BaseException):
        pass

    def handler(signum, frame):
        raise Terminated

    before = signal.signal(signal.SIGTERM, handler)
    yield Terminated
    signal.signal(signal.SIGTERM, before)


# In an evaluation and a prediction.


@pytest.mark.parametrize("seconds", [0.01, 0.0])
def test_a_signal_ends_the_evaluation_of_train_and_evaluate(tmp_path, caplog, seconds):
    estimator, results, ended = counting(tmp_path), [], []

    class Last(SessionRunHook):
        def end(self, session):
            ended.append(session.global_step)

    class Asked(js.Exporter):
        name = "asked"

        def export(self, **kwargs):
            results.append(kwargs)

    with pytest.raises(KeyboardInterrupt):
        js.train_and_evaluate(
            estimator,
            js.TrainSpec(counting_input(), max_steps=6, hooks=[Last()]),
            js.EvalSpec(endless(at=5, seconds=seconds), steps=None, throttle_secs=0, exporters=Asked()),
        )
    assert checkpoint_steps(tmp_path) == [0, 2]  # training did not go on
    assert ended == [2]
    assert results == []  # no part of an evaluation counts as one
    assert "A signal ended the evaluation of step 2, which has no results" in caplog.text
    assert "SIGINT: training ends and is saved; now waiting for" in caplog.text
    assert "evaluation, in hook CheckpointSaverHook.after_run" in caplog.text


def test_sigterm_in_the_last_evaluation_acts_when_that_is_left(tmp_path, sigterm_raises):
    estimator = counting(tmp_path, save=100)
    with pytest.raises(sigterm_raises):
        js.train_and_evaluate(
            estimator,
            js.TrainSpec(counting_input(), max_steps=3),
            js.EvalSpec(endless(at=5, do=lambda: send(signal.SIGTERM)), steps=None),
        )
    assert checkpoint_steps(tmp_path) == [0, 3]


@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_a_signal_ends_what_a_hook_evaluates_or_predicts(tmp_path, verb):
    estimator, ended, seen = counting(tmp_path), [], []

    class Evaluates(SessionRunHook):
        def after_run(self, run_context, run_values):
            if verb == "evaluate":
                seen.append(estimator.evaluate(endless(at=5)))
            else:
                for number, example in enumerate(estimator.predict(endless(seconds=0))):
                    seen.append(example["w"])
                    if number == 50:
                        send()  # between two `next`

        def end(self, session):
            ended.append(session.global_step)

    with pytest.raises(KeyboardInterrupt):
        estimator.train(counting_input(), max_steps=100, hooks=[Evaluates()])
    assert ended == [2]
    assert seen == ([] if verb == "evaluate" else [2.0] * 51)
    assert checkpoint_steps(tmp_path) == [0, 2]


@pytest.mark.parametrize("verb", ["evaluate", "predict"])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_an_evaluation_or_prediction_of_its_own_at_once(tmp_path, verb, name, sigterm_raises):
    waiting = threading.Event()

    def stuck():
        yield from counting_input(3)()
        send(getattr(signal, name))
        waiting.wait(30)

    estimator = counting(tmp_path)
    releases = threading.Timer(0.5, waiting.set)  # the thread of the input ends then, and is waited for
    releases.start()
    with pytest.raises(KeyboardInterrupt if name == "SIGINT" else sigterm_raises):
        list(getattr(estimator, verb)(stuck)) if verb == "predict" else estimator.evaluate(stuck)
    releases.join()
    assert estimator.evaluate(counting_input(2))["loss"] == pytest.approx(0.5)


# With an error besides.


class FailsAfter(SessionRunHook):
    """A signal in the first loop, an error on the way out."""

    def __init__(self, signum):
        self.signum = signum

    def after_run(self, run_context, run_values):
        send(self.signum)

    def end(self, session):
        raise ValueError("cannot upload")


def test_an_error_after_ctrl_c_is_behind_the_interrupt(tmp_path):
    with pytest.raises(KeyboardInterrupt) as caught:
        counting(tmp_path).train(counting_input(), hooks=[FailsAfter(signal.SIGINT)], steps=100)
    error = caught.value.__context__
    assert str(error) == "cannot upload"
    assert "SIGINT had come before this error; it acts now" in error.__notes__


def test_a_callers_handler_is_called_although_an_error_follows(tmp_path):
    heard = []
    before = signal.signal(signal.SIGTERM, lambda signum, frame: heard.append(signum))
    try:
        with pytest.raises(ValueError, match="cannot upload"):
            counting(tmp_path).train(counting_input(), hooks=[FailsAfter(signal.SIGTERM)], steps=100)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]


def test_sigterm_ends_the_process_although_an_error_follows(tmp_path):
    program = """
import os, signal, sys
import jaxspec as js
import signal_runs
from tiny_models import counting_init, counting_input, counting_model_fn, run_config
class Fails(js.hooks.SessionRunHook):
    def after_run(self, run_context, run_values):
        os.kill(os.getpid(), signal.SIGTERM)
    def end(self, session):
        raise ValueError("cannot upload")
try:
    js.TPUEstimator(counting_model_fn, counting_init, model_dir=sys.argv[1], config=run_config(num_shards=1),
        train_batch_size=4).train(counting_input(), hooks=[Fails()], steps=1000)
except ValueError:
    print("goes on")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, env=environment()
    )
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "")
    assert "ValueError: cannot upload" in done.stderr
    assert "SIGTERM: training ends and is saved; now waiting for hook Fails.after_run" in done.stderr


def environment():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


# Any number, at bad moments.

SCENARIOS = [
    {"moment": moment, "signal": name, "count": count, "gap": gap}
    for moment, name, count, gap in [
        ("save", "SIGINT", 2, 0.01),
        ("save", "SIGINT", 3, 0.03),
        ("save", "SIGTERM", 2, 0.01),
        ("host_call", "SIGINT", 3, 0.3),
        ("input", "SIGINT", 2, 0.3),
    ]
]


@pytest.mark.slow(reason="five processes train until they are interrupted, and each waits for what hangs")
def test_any_number_of_signals_leaves_whole_checkpoints_and_ends_in_time(tmp_path):
    program = signal_runs.__file__
    done = subprocess.run(
        [sys.executable, program, str(tmp_path)],
        input=json.dumps(SCENARIOS),
        capture_output=True,
        text=True,
        timeout=300,
        env=environment(),
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(SCENARIOS), done.stderr
    for number, (scenario, result) in enumerate(zip(SCENARIOS, results, strict=True)):
        # A patience of one second for what hangs; the rest is the checkpoint, and the end of Python.
        assert result["took"] < 6, (scenario, result)
        assert result["status"] == -getattr(signal, scenario["signal"]), (scenario, result)
        if scenario["signal"] == "SIGINT":
            assert "SIGINT: training ends and is saved; now waiting for" in result["said"], scenario
        model_dir = str(tmp_path / str(number))
        steps = checkpoint_steps(model_dir)
        assert steps, (scenario, result)
        for step in steps:
            path = checkpoint_path(model_dir, step)
            assert js.checkpoint.read_array(path, "params/w") == step, (scenario, path)
            assert js.checkpoint.read_array(path, "global_step") == step, (scenario, path)
        # It goes on from there: every part is there.
        counting(model_dir).train(counting_input(), steps=1)
        assert checkpoint_steps(model_dir)[-1] == steps[-1] + 1


def test_a_host_call_that_hangs_is_waited_for_once(tmp_path, monkeypatch, caplog):
    """The end of the run and the end of its thread share one time."""
    from jaxspec._src.run import signals

    monkeypatch.setattr(signals, "PATIENCE_SECS", 1.0)
    go, stamps = threading.Event(), []

    def hang(step):
        if int(step[0]) == 2:
            stamps.append(time.monotonic())
            send()
            go.wait(60)

    def model_fn(variables, features, mode, step):
        return counting_model_fn(variables, features, mode)._replace(host_call=(hang, [step]))

    config = run_config(save=100, every=1, num_shards=1)
    estimator = js.TPUEstimator(model_fn, counting_init, model_dir=tmp_path, config=config, train_batch_size=4)
    with pytest.raises(KeyboardInterrupt):
        estimator.train(counting_input(), steps=100)
    assert time.monotonic() - stamps[0] < 5
    assert "host_call is still busy; the checkpoint is written without waiting for it" in caplog.text
    assert np.size(checkpoint_steps(tmp_path)) == 2
    go.set()
    for thread in threading.enumerate():
        if thread.name.startswith("jaxspec"):
            thread.join(10)
