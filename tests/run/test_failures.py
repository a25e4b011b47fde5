"""Runs that are interrupted or fail, at bad moments: nothing wrong is saved, nothing is lost, nothing is left
running."""

import os
import signal
import threading
import time

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_models import counting_init, counting_input, counting_model_fn, run_config

import jaxspec as js
from jaxspec._src.checkpoint.saver import Saver
from jaxspec._src.run import host_queue, signals
from jaxspec.checkpoint import checkpoint_steps
from jaxspec.hooks import SessionRunHook


def counting(model_dir, host_call=None, every=4, save=1000, **kwargs):
    """The counting model on one device, with a host_call of the step."""

    def model_fn(variables, features, mode, step):
        pair = None if host_call is None else (lambda step: host_call(int(step[0])), [step])
        return counting_model_fn(variables, features, mode)._replace(host_call=pair)

    sizes = dict.fromkeys(("train_batch_size", "eval_batch_size", "predict_batch_size"), 4)
    config = run_config(save=save, every=every, num_shards=1)
    return js.TPUEstimator(model_fn, counting_init, model_dir=model_dir, config=config, **sizes, **kwargs)


def nan_input(at):
    """The counting input with a NaN in batch `at`."""

    def input_fn():
        for i, batch in enumerate(counting_input()()):
            yield {"x": np.full(4, np.nan, np.float32)} if i == at else batch

    return input_fn


def helper_threads():
    """What the library has left running."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("jaxspec")]


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    assert helper_threads() == []


def send_interrupt():
    """Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def interrupt():
    """A function that sends an interrupt after some seconds. What is not sent when the test ends never is."""
    timers = []

    def later(seconds):
        timers.append(threading.Timer(seconds, send_interrupt))
        timers[-1].start()

    yield later
    for timer in timers:
        timer.cancel()
        timer.join()


def test_a_nan_behind_a_failing_host_call_is_not_saved_later(tmp_path):
    def failing(step):
        if step == 8:
            time.sleep(0.3)  # until the NaN of step 11 is on its way
            raise RuntimeError("mine")

    estimator = counting(tmp_path, failing)
    with pytest.raises((RuntimeError, js.hooks.NanLossDuringTrainingError)):
        estimator.train(nan_input(at=11), steps=12)
    estimator.train(counting_input(), steps=1)
    assert checkpoint_steps(tmp_path) == [0, 1]  # from the checkpoint of step 0, not from behind the NaN


def test_a_nan_behind_an_exit_is_not_saved_later(tmp_path):
    class Exits(SessionRunHook):
        after_host_calls = False

        def after_run(self, run_context, run_values):
            if run_context.last_step == 11:
                raise SystemExit(1)

    estimator = counting(tmp_path)
    with pytest.raises(SystemExit):
        estimator.train(nan_input(at=11), steps=20, hooks=[Exits()])
    estimator.train(counting_input(), steps=1)
    assert checkpoint_steps(tmp_path) == [0, 1]


def test_a_second_interrupt_while_host_calls_are_waited_for_saves(tmp_path, interrupt):
    called = []

    def slow(step):
        called.append(step)
        if step == 2:
            send_interrupt()
            interrupt(0.5)
        time.sleep(0.4)

    with pytest.raises(KeyboardInterrupt):
        counting(tmp_path, slow, every=1).train(counting_input(), steps=100)
    (_, saved) = checkpoint_steps(tmp_path)
    assert called == list(range(saved))


def test_an_interrupt_while_the_queue_is_full_loses_no_host_call(tmp_path):
    called = []

    def slow(step):
        time.sleep(0.2)
        called.append(step)

    class Interrupts(SessionRunHook):
        after_host_calls = False

        def after_run(self, run_context, run_values):
            if run_context.last_step == 5:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        counting(tmp_path, slow, every=1).train(counting_input(), steps=100, hooks=[Interrupts()])
    assert checkpoint_steps(tmp_path) == [0, 6]
    assert called == list(range(6))


def test_a_put_that_is_interrupted_has_put(interrupt):
    queue, go, done = host_queue.HostQueue(max_waiting=0), threading.Event(), []
    queue.put(lambda: go.wait(30))
    interrupt(0.3)
    with pytest.raises(KeyboardInterrupt):
        queue.put(lambda: done.append(1))
    go.set()
    queue.join()
    queue.close()
    assert done == [1]


def test_an_interrupted_run_does_not_wait_for_a_host_call_that_hangs(tmp_path, monkeypatch, caplog, interrupt):
    monkeypatch.setattr(signals, "PATIENCE_SECS", 0.2)
    go = threading.Event()

    def hang(step):
        if step == 2:
            interrupt(0.5)
            interrupt(1.0)  # while the run waits for this call
            go.wait(60)

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        counting(tmp_path, hang, every=1).train(counting_input(), steps=100)
    assert time.monotonic() - began < 30
    assert len(checkpoint_steps(tmp_path)) == 2
    assert "the checkpoint is written without waiting for it" in caplog.text
    go.set()
    for thread in threading.enumerate():
        if thread.name.startswith("jaxspec"):
            thread.join(10)


def slow_input(seconds, interrupt_at=None):
    """The counting input, so many seconds a batch; at one of them there is an interrupt."""

    def input_fn():
        for i, batch in enumerate(counting_input()()):
            if i == interrupt_at:
                send_interrupt()
            yield batch
            time.sleep(seconds)

    return input_fn


class Loops(SessionRunHook):
    """Remembers the loops."""

    def __init__(self):
        self.loops = []

    def after_run(self, run_context, run_values):
        self.loops.append((run_context.first_step, run_context.last_step))


def test_a_signal_is_heard_within_a_loop(tmp_path):
    hook = Loops()
    with pytest.raises(KeyboardInterrupt):
        counting(tmp_path, every=100_000).train(slow_input(0.01, interrupt_at=300), hooks=[hook], steps=100_000)
    ((first, last),) = hook.loops
    assert (first, last < 1000) == (0, True)
    assert checkpoint_steps(tmp_path) == [0, last + 1]


def test_a_loop_of_some_seconds_does_not_take_many_more(tmp_path):
    hook = Loops()
    # Its first loops have the batches that were fetched while it compiled, and seem fast.
    counting(tmp_path, every="1s").train(slow_input(0.01), hooks=[hook], steps=300)
    lengths = [last + 1 - first for first, last in hook.loops]
    assert sum(lengths) == 300
    assert max(lengths) < 200


def test_an_interrupt_before_the_first_batch_is_heard_at_once(tmp_path, interrupt):
    interrupt(0.3)
    busy = threading.Event()

    def input_fn():
        assert busy.wait(20)  # nobody can interrupt another thread
        yield from ()

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        counting(tmp_path).train(input_fn, steps=1)
    assert time.monotonic() - began < 10
    busy.set()
    for thread in threading.enumerate():
        if thread.name == "jaxspec-infeed":
            thread.join(10)


def test_a_signal_leaves_out_the_last_evaluation(tmp_path, caplog):
    class Interrupts(SessionRunHook):
        def after_run(self, run_context, run_values):
            if run_context.last_step == 3:
                send_interrupt()

    evaluated = []
    caplog.set_level("INFO", "jaxspec")

    def eval_input():
        evaluated.append(True)
        return counting_input(1)()

    with pytest.raises(KeyboardInterrupt):
        js.train_and_evaluate(
            counting(tmp_path),
            js.TrainSpec(counting_input(), max_steps=100, hooks=[Interrupts()]),
            js.EvalSpec(eval_input, throttle_secs=0),
        )
    assert checkpoint_steps(tmp_path) == [0, 4]
    assert evaluated == []
    assert caplog.text.count("step 4 is saved, and not evaluated") == 1


def test_the_state_of_an_evaluation_may_be_kept(tmp_path):
    class Keeps(SessionRunHook):
        def end(self, session):
            self.state = session.state

    estimator, hook = counting(tmp_path), Keeps()
    estimator.train(counting_input(), steps=4)
    estimator.evaluate(counting_input(2), hooks=[hook])
    estimator.train(counting_input(), steps=4)
    assert float(hook.state.variables["params"]["w"]) == 4
    assert estimator.get_variable_value("params/w") == 8


def test_the_users_error_is_raised_although_a_checkpoint_fails_too(tmp_path, monkeypatch):
    estimator, wait = counting(tmp_path, save=2), Saver.wait

    def failing_wait(saver, timeout=None):
        wait(saver, timeout)
        raise OSError("disk full")

    class Fails(SessionRunHook):
        def after_run(self, run_context, run_values):
            if run_context.last_step >= 2:
                monkeypatch.setattr(Saver, "wait", failing_wait)
                raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as caught:
        estimator.train(counting_input(), steps=8, hooks=[Fails()])
    assert "OSError: disk full" in "".join(caught.value.__notes__)


@pytest.mark.parametrize("where", ["metric_fn", "end"])
def test_a_stop_iteration_of_an_evaluation_comes_out_as_itself(tmp_path, where):
    def model_fn(variables, features, mode):
        spec = counting_model_fn(variables, features, mode)
        return spec._replace(eval_metrics=(lambda x: next(iter(())), [features["x"]])) if where == "metric_fn" else spec

    class Ends(SessionRunHook):
        def end(self, session):
            if where == "end":
                raise StopIteration("mine")

    estimator = js.TPUEstimator(
        model_fn, counting_init, model_dir=tmp_path, eval_batch_size=4, config=run_config(num_shards=1)
    )
    with pytest.raises(StopIteration) as caught:
        estimator.evaluate(counting_input(2), hooks=[Ends()])
    assert where in "".join(caught.value.__notes__)


@pytest.mark.parametrize("verb", ["train", "evaluate", "predict"])
def test_a_hook_without_an_end_is_aborted(tmp_path, verb):
    log = []

    class First(SessionRunHook):
        def end(self, session):
            log.append("first.end")

        def abort(self):
            log.append("first.abort")
            raise KeyError("too")

    class Second(First):
        def end(self, session):
            raise ValueError("mine")

        def abort(self):
            log.append("second.abort")

    estimator = counting(tmp_path)

    def run(input_fn):
        called = getattr(estimator, verb)(input_fn, hooks=[First(), Second()])
        return list(called) if verb == "predict" else called

    with pytest.raises(ValueError, match="mine"):
        run(counting_input(1))
    assert log == ["first.end", "second.abort"]  # the first one has ended
    log.clear()

    def failing():
        yield from counting_input(1)()
        raise RuntimeError("input")

    with pytest.raises(RuntimeError, match="input") as caught:
        run(failing)
    assert log == ["first.abort", "second.abort"]
    assert "and then, in First.abort: KeyError: 'too'" in caught.value.__notes__


def test_a_profile_ends_with_a_run_that_fails(tmp_path):
    class Fails(SessionRunHook):
        def after_run(self, run_context, run_values):
            if run_context.last_step >= 8:
                raise ValueError("mine")

    def profiler():
        return js.hooks.ProfilerHook(save_steps=4, output_dir=str(tmp_path / "profile"))

    for _ in range(2):
        with pytest.raises(ValueError, match="mine"):
            counting(tmp_path).train(counting_input(), steps=20, hooks=[Fails(), profiler()])


def test_the_checkpoint_of_another_run_is_replaced(tmp_path, caplog):
    there = tmp_path / "there"

    def train(model_dir, start):
        def init_fn():
            return {"params": {"w": np.float32(start)}}

        saver = js.hooks.CheckpointSaverHook(there, save_steps=100)
        estimator = js.TPUEstimator(
            counting_model_fn, init_fn, model_dir=model_dir, train_batch_size=4, config=run_config(num_shards=1)
        )
        estimator.train(counting_input(), steps=2, hooks=[saver]).train(counting_input(), steps=2, hooks=[saver])

    train(tmp_path / "first", 0)
    assert "is replaced" not in caplog.text
    train(tmp_path / "second", 10)
    assert "is of another run; it is replaced" in caplog.text
    assert js.checkpoint.read_array(str(there / "model.ckpt-4"), "params/w") == 14


def test_an_error_of_a_listener_names_the_listener(tmp_path):
    class Listens(js.hooks.CheckpointSaverListener):
        def after_save(self, session, global_step):
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as caught:
        counting(tmp_path).train(counting_input(), steps=1, saving_listeners=[Listens()])
    assert caught.value.__notes__[0] == "raised by Listens.after_save"


def test_a_nan_is_nobodys_error(tmp_path):
    with pytest.raises(js.hooks.NanLossDuringTrainingError) as caught:
        counting(tmp_path, save=5).train(nan_input(at=3), steps=10)
    assert not hasattr(caught.value, "__notes__")


def test_an_exporter_that_fails_is_named(tmp_path):
    with pytest.raises(TypeError, match="must return an export.ServingInputReceiver, got None") as caught:
        js.train_and_evaluate(
            counting(tmp_path),
            js.TrainSpec(counting_input(), max_steps=1),
            js.EvalSpec(counting_input(1), exporters=js.BestExporter("best", lambda: None)),
        )
    assert "raised by exporter 'best' (BestExporter)" in caught.value.__notes__


def test_a_signal_is_acknowledged(tmp_path, caplog):
    with pytest.raises(KeyboardInterrupt):
        counting(tmp_path).train(slow_input(0.01, interrupt_at=20), steps=1000)
    assert "Interrupted by a signal: saving step" in caplog.text


def test_a_model_fn_that_forgets_the_variables(tmp_path, caplog):
    def model_fn(features, mode):
        return js.TPUEstimatorSpec(mode, loss=features["x"].mean(), train_op=js.minimize(optax.sgd(0.1)))

    js.TPUEstimator(
        model_fn, counting_init, model_dir=tmp_path, train_batch_size=4, config=run_config(num_shards=1)
    ).train(counting_input(), steps=1)
    assert caplog.text.count("model_fn does not name `variables`") == 1


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("prediction", [lambda x: x.mean(), lambda x: jnp.ones(7)])
def test_predictions_that_are_not_one_for_each_example(tmp_path, shards, prediction):
    def model_fn(features, mode):
        return js.TPUEstimatorSpec(mode, predictions={"a": prediction(features["x"])})

    estimator = js.TPUEstimator(
        model_fn, counting_init, model_dir=tmp_path, predict_batch_size=8, config=run_config(num_shards=shards)
    )
    with pytest.raises(ValueError, match=r"predictions\['a'\] has \d+ entries for a batch of 8 examples"):
        list(estimator.predict(counting_input(2, rows=8)))
