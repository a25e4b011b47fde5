"""host_call beside the devices: once a step, in order, bounded, complete."""

import contextvars
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from tiny_models import counting_init, counting_input, counting_model_fn, run_config

import jaxspec as js
from jaxspec._src.device.program import MAX_IN_FLIGHT
from jaxspec._src.run.host_queue import MAX_WAITING, HostQueue
from jaxspec.checkpoint import checkpoint_steps


def counting(model_dir, host_call, every=4, save=1000, shards=1, use_tpu=True, n=1, **run):
    def model_fn(variables, features, mode, step):
        return counting_model_fn(variables, features, mode)._replace(host_call=(host_call, [step]))

    config = run_config(save=save, every=every, num_shards=shards, experimental_host_call_every_n_steps=n, **run)
    sizes = {"train_batch_size": 4, "eval_batch_size": 4}
    return js.TPUEstimator(model_fn, counting_init, model_dir=model_dir, config=config, use_tpu=use_tpu, **sizes)


def helper_threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("jaxspec")]


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("every", [1, 4, 7])
def test_every_third_step_across_loops_and_restarts(tmp_path, every, shards):
    steps = []
    for stop in (5, 16):
        counting(tmp_path, lambda step: steps.append(step.tolist()), every, shards=shards, n=3).train(
            counting_input(), max_steps=stop
        )
    assert steps == [[step] * shards for step in (0, 3, 6, 9, 12, 15)]


@pytest.mark.parametrize("every", [1, 4])
def test_a_slow_host_call_loses_nothing_and_the_queue_is_bounded(tmp_path, every):
    steps, ahead, may_go = [], [], threading.Event()

    class Ahead(js.hooks.SessionRunHook):
        after_host_calls = False

        def after_run(self, run_context, run_values):
            if not may_go.is_set():
                ahead.append(run_context.last_step + 1)

    def slow(step):
        # The first call holds everything up, until training has come as far as it can.
        if not steps:
            before = 0
            while not ahead or len(ahead) > before:
                before = len(ahead)
                time.sleep(0.5)
            may_go.set()
        steps.append(int(step[0]))

    counting(tmp_path, slow, every).train(counting_input(), steps=15 * every, hooks=[Ahead()])
    assert steps == list(range(15 * every))
    # One dispatch is at work, the queue is full, one is in hand, and the rest is on the devices.
    assert every <= max(ahead) <= (1 + MAX_WAITING + 1 + MAX_IN_FLIGHT) * every
    assert helper_threads() == []


def test_the_devices_do_not_wait_for_one_host_call(tmp_path):
    done = threading.Event()
    seen = []

    class Later(js.hooks.SessionRunHook):
        after_host_calls = False

        def after_run(self, run_context, run_values):
            if run_context.last_step == 1:
                done.set()

    def first_waits_for_a_later_loop(step):
        if step[0] == 0:
            seen.append(done.wait(60))

    counting(tmp_path, first_waits_for_a_later_loop, every=1).train(counting_input(), steps=3, hooks=[Later()])
    assert seen == [True]


@pytest.mark.parametrize("use_tpu", [True, False])
def test_complete_before_end_and_before_a_checkpoint_is_announced(tmp_path, use_tpu):
    log = []

    def slow(step):
        time.sleep(0.01)
        log.append(int(step[0]))

    class Listener(js.hooks.CheckpointSaverListener):
        def before_save(self, session, global_step):
            log.append(f"before_save {global_step}")

    class Hook(js.hooks.SessionRunHook):
        def end(self, session):
            log.append("end")

    counting(tmp_path, slow, every=2, save=3, use_tpu=use_tpu).train(
        counting_input(), steps=5, hooks=[Hook()], saving_listeners=[Listener()]
    )
    assert log == ["before_save 0", 0, 1, 2, "before_save 3", 3, 4, "before_save 5", "end"]


@pytest.mark.parametrize("use_tpu", [True, False])
@pytest.mark.parametrize("error", [KeyError("mine"), StopIteration("mine")])
def test_its_exception_ends_the_run_as_itself(tmp_path, use_tpu, error):
    calls = []

    def failing(step):
        calls.append(int(step[0]))
        if step[0] == 3:
            raise error

    estimator = counting(tmp_path, failing, every=2, save=4, use_tpu=use_tpu)
    with pytest.raises(type(error), match="mine") as caught:
        estimator.train(counting_input(), steps=20)
    assert caught.value.__notes__[0].startswith("raised by host_call (")
    assert caught.value.__notes__[1] == "in training, at global step 3"
    assert calls == [0, 1, 2, 3]
    assert checkpoint_steps(tmp_path) == [0]
    assert helper_threads() == []


@pytest.mark.parametrize("every", [1, 20])
def test_up_to_a_nan_and_no_further(tmp_path, every):
    steps = []

    def model_fn(variables, features, mode, step):
        loss = jax.numpy.where(step == 13, jax.numpy.nan, features["x"].mean())
        return counting_model_fn(variables, features, mode)._replace(
            loss=loss, host_call=(lambda step: steps.append(int(step[0])), [step])
        )

    config = run_config(save=5, every=every)
    estimator = js.TPUEstimator(model_fn, counting_init, model_dir=tmp_path, config=config, train_batch_size=4)
    with pytest.raises(js.hooks.NanLossDuringTrainingError, match="at step 13 "):
        estimator.train(counting_input(), steps=40)
    assert steps == list(range(14))
    assert checkpoint_steps(tmp_path) == [0, 5, 10]


def test_in_evaluation_once_a_batch(tmp_path):
    steps = []
    estimator = counting(tmp_path, lambda step: steps.append(step.tolist()), shards=4, n=3).train(
        counting_input(), steps=2
    )
    steps.clear()
    estimator.evaluate(counting_input(3))
    assert steps == [[2] * 4] * 3


def test_the_queue_runs_jobs_in_order_and_bounds_what_waits():
    queue, order, go = HostQueue(max_waiting=2), [], threading.Event()
    queue.put(lambda: go.wait(60))
    added = []

    def add():
        for i in range(5):
            queue.put(lambda i=i: order.append(i))
            added.append(i)

    adder = threading.Thread(target=add)
    adder.start()
    time.sleep(0.2)
    assert len(added) == 2
    go.set()
    adder.join()
    queue.join()
    assert order == list(range(5))
    queue.close()
    assert helper_threads() == []


def test_the_queue_sees_the_context_of_its_maker():
    name, seen = contextvars.ContextVar("name"), []
    name.set("outer")
    queue = HostQueue()
    queue.put(lambda: seen.append(name.get()))
    queue.join()
    queue.close()
    assert seen == ["outer"]


def test_a_default_writer_of_the_caller_is_used(tmp_path):
    def write(step):
        js.summary.scalar("x", np.float32(7))

    with js.summary.create_file_writer(tmp_path / "mine").as_default():
        counting(tmp_path / "model", write).train(counting_input(), steps=2)
    assert [path.name for path in (tmp_path / "mine").iterdir()]


def test_every_later_call_raises_the_exception_of_a_job():
    error, order, queue = KeyError("mine"), [], HostQueue()

    def fail():
        raise error

    queue.put(fail, wait=False)
    while not queue.failed:
        time.sleep(0.01)
    for call in (queue.join, queue.join, lambda: queue.put(lambda: order.append(1))):
        with pytest.raises(KeyError) as caught:
            call()
        assert caught.value is error
    queue.close()
    assert order == []


def test_join_and_put_stop_waiting():
    stop, go = threading.Event(), threading.Event()
    queue = HostQueue(max_waiting=0, give_up=stop.is_set)
    queue.put(lambda: go.wait(60))
    assert not queue.join(0.01)
    stop.set()
    queue.put(lambda: None)
    assert not queue.join()
    go.set()
    queue.close()


def test_a_job_that_hangs_keeps_no_process_alive():
    program = """
import threading
from jaxspec._src.run.host_queue import HostQueue
queue, began = HostQueue(), threading.Event()
queue.put(lambda: (began.set(), threading.Event().wait()))
began.wait()
queue.close(timeout=0.1)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == "host_call is still busy and cannot be interrupted; its thread is left to finish.\n"


def test_closing_drops_what_waits():
    queue, order, go = HostQueue(), [], threading.Event()
    queue.put(lambda: go.wait(60))
    queue.put(lambda: order.append(1))
    threading.Timer(0.2, go.set).start()
    queue.close()
    assert order == []
    assert helper_threads() == []
