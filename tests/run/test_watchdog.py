"""A run that makes no progress says what it waits for, and is otherwise left alone."""

import contextlib
import logging
import threading
import time
import weakref

import jax
import numpy as np
import pytest
from tiny_models import counting_init, counting_input, counting_model_fn, run_config

import jaxspec as js
from jaxspec._src.base.activities import doing
from jaxspec._src.run import watchdog as watchdog_module
from jaxspec._src.run.watchdog import Watchdog
from jaxspec.hooks import SessionRunHook

STALL_SECS = 900


class Time:
    """A clock, and the waiting of a watchdog by it: the thread goes on to its next look when `pass_secs` says so."""

    def __init__(self):
        self.now, self._looks = 1000.0, threading.Semaphore(0)
        self._waits, self.ended = threading.Event(), False

    def __call__(self):
        return self.now

    def wait(self, seconds):
        self._due = self.now + seconds
        self._waits.set()
        assert self._looks.acquire(timeout=60)
        return self.ended

    def pass_secs(self, seconds):
        """Lets time pass, with a look at each moment that the watchdog asks for."""
        end = self.now + seconds
        while self._waits.wait(60) and self._due <= end:
            self.now = self._due
            self._look()
        self.now = end

    def _look(self):
        self._waits.clear()
        self._looks.release()
        assert self._waits.wait(60)

    def end(self):
        self.ended = True
        self._looks.release()


@pytest.fixture
def now():
    return Time()


@pytest.fixture
def watchdog(now):
    with contextlib.closing(Watchdog("training", STALL_SECS, clock=now, wait=now.wait)) as one:
        yield one
        now.end()


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_it_warns_after_the_time_and_once_a_minute_more(now, watchdog, caplog):
    with watchdog, doing("the input"):
        now.pass_secs(STALL_SECS - 1)
        assert warnings(caplog) == []
        now.pass_secs(1)
        assert [text.split(":")[0] for text in warnings(caplog)] == ["No progress for 900 s"]
        now.pass_secs(59)
        assert len(warnings(caplog)) == 1
        now.pass_secs(1)
        assert len(warnings(caplog)) == 2
        assert warnings(caplog)[1].startswith("No progress for 960 s: training waits for the input.")


def test_what_begins_or_ends_is_progress(now, watchdog, caplog):
    with watchdog:
        for _ in range(5):
            with doing("the input"):
                now.pass_secs(STALL_SECS - 60)
            now.pass_secs(STALL_SECS - 60)
    assert warnings(caplog) == []


def test_the_time_outside_does_not_count(now, watchdog, caplog):
    for _ in range(3):
        with watchdog:
            now.pass_secs(100)
        now.pass_secs(10 * STALL_SECS)
    assert warnings(caplog) == []


def test_it_names_the_activities_from_the_innermost_on(now, watchdog, caplog):
    with watchdog, doing("hook Mine.after_run"), doing("evaluation"), doing("the input"):
        now.pass_secs(STALL_SECS)
    assert "training waits for the input, in evaluation, in hook Mine.after_run." in caplog.text


def test_without_an_activity_it_is_the_devices(now, watchdog, caplog):
    with watchdog:
        now.pass_secs(STALL_SECS)
    assert "training waits for the devices. It goes on waiting." in caplog.text


def test_it_shows_the_stacks_of_all_threads(now, watchdog, caplog):
    release = threading.Event()

    def stuck_in_here():
        release.wait(60)

    thread = threading.Thread(target=stuck_in_here, name="a-thread-of-mine")
    thread.start()
    with watchdog:
        now.pass_secs(STALL_SECS)
    release.set()
    thread.join()
    assert "Thread a-thread-of-mine:\n" in caplog.text
    assert f'Thread a-thread-of-mine:\n  File "{__file__}", line ' in caplog.text  # not the start of the thread
    assert "in stuck_in_here\n    release.wait(60)" in caplog.text
    assert "Thread MainThread:\n" in caplog.text
    assert "jaxspec-watchdog" not in caplog.text


def test_the_stacks_leave_out_threads_of_a_pool_that_wait_for_work(now, watchdog, caplog):
    import concurrent.futures

    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="a-pool") as pool:
        pool.submit(lambda: None).result()
        with watchdog:
            now.pass_secs(STALL_SECS)
    assert "Thread MainThread:\n" in caplog.text
    assert "a-pool" not in caplog.text


def test_compiling_is_progress(now, watchdog, caplog, monkeypatch):
    passed = []
    compiler = jax._src.compiler

    def slow(*args, real=compiler.backend_compile_and_load, **kwargs):
        passed.append(now.pass_secs(3 * STALL_SECS))
        return real(*args, **kwargs)

    monkeypatch.setattr(compiler, "backend_compile_and_load", slow)
    # A number of this process: the store of compiled programs has none with it.
    constant = time.time_ns() % 10**9
    with watchdog:
        jax.jit(lambda x: x + constant)(np.int64(1))
        assert passed
        assert warnings(caplog) == []
        now.pass_secs(STALL_SECS)
        assert len(warnings(caplog)) == 1


def test_it_keeps_nothing_alive_that_a_stack_holds(now, watchdog):
    class Batch:
        pass

    def step():
        batch = Batch()
        now.pass_secs(60)
        return weakref.ref(batch)

    with watchdog:
        assert step()() is None


def test_none_starts_no_thread():
    before = threading.active_count()
    with Watchdog("training", None):
        assert threading.active_count() == before


def test_its_thread_ends_with_it():
    one = Watchdog("training", STALL_SECS)
    with one:
        assert [thread.name for thread in threading.enumerate()].count("jaxspec-watchdog") == 1
    one.close()
    assert "jaxspec-watchdog" not in [thread.name for thread in threading.enumerate()]


# In a run.


def estimator(model_dir, fn=counting_model_fn, **kwargs):
    config = run_config(save=kwargs.pop("save", None), every=kwargs.pop("every", 2), num_shards=1, **kwargs)
    sizes = dict.fromkeys(("train_batch_size", "eval_batch_size", "predict_batch_size"), 4)
    return js.TPUEstimator(fn, counting_init, model_dir=model_dir, config=config, **sizes)


@pytest.fixture
def impatient(monkeypatch):
    """The watchdog looks often."""
    monkeypatch.setattr(watchdog_module, "_AGAIN_SECS", 0.1)


def until_warned(caplog, text):
    """Waits as a run does that hangs, until the watchdog has warned."""
    end = time.monotonic() + 60
    while not any(text in line for line in warnings(caplog)):
        assert time.monotonic() < end, caplog.text
        time.sleep(0.01)


def input_that_hangs(caplog, at, text):
    def input_fn():
        for i, batch in enumerate(counting_input(6)()):
            if i == at:
                until_warned(caplog, text)
            yield batch

    return input_fn


@pytest.mark.parametrize("at", [0, 3])
@pytest.mark.parametrize("verb", ["train", "evaluate", "predict"])
def test_an_input_that_hangs(tmp_path, caplog, impatient, verb, at):
    one = estimator(tmp_path, stall_timeout_secs=0.2)
    name = {"train": "training", "evaluate": "evaluation", "predict": "prediction"}[verb]
    within = ", in evaluation" if verb == "evaluate" and at else ""
    done = getattr(one, verb)(input_that_hangs(caplog, at, f"{name} waits for the input{within}. It goes on waiting."))
    if verb == "predict":
        assert len(list(done)) == 24
    assert "Thread jaxspec-infeed:" in caplog.text
    assert "until_warned(caplog, text)" in caplog.text


def test_a_hook_that_looks_at_the_clock_meanwhile_is_no_progress(tmp_path, caplog, impatient):
    class Looks(SessionRunHook):
        calls = 0

        def wants_loop_end(self, global_step):
            self.calls += 1
            return False

    hook = Looks()
    input_fn = input_that_hangs(caplog, 3, "training waits for the input. It goes on waiting.")
    estimator(tmp_path, every=100, stall_timeout_secs=0.2).train(input_fn, hooks=[hook])
    assert hook.calls > 5


def test_a_host_call_that_hangs(tmp_path, caplog, impatient):
    def host_call(step):
        if int(step[0]) == 2:
            until_warned(caplog, "training waits for host_call")

    def model_fn(variables, features, mode, step):
        return counting_model_fn(variables, features, mode)._replace(host_call=(host_call, [step]))

    estimator(tmp_path, model_fn, stall_timeout_secs=0.2).train(counting_input(), steps=4)


def test_a_hook_that_hangs(tmp_path, caplog, impatient):
    class Hangs(SessionRunHook):
        def after_run(self, run_context, run_values):
            until_warned(caplog, "training waits for hook Hangs.after_run. It goes on waiting.")

    estimator(tmp_path, stall_timeout_secs=0.2).train(counting_input(), steps=2, hooks=[Hangs()])


def test_a_device_that_hangs(tmp_path, caplog, impatient):
    def hang(x):
        if x[0] == 3:
            until_warned(caplog, "training waits for the devices. It goes on waiting.")
        return x

    def model_fn(variables, features, mode):
        x = features["x"]
        features = {"x": jax.pure_callback(hang, jax.ShapeDtypeStruct(x.shape, x.dtype), x)}
        return counting_model_fn(variables, features, mode)

    estimator(tmp_path, model_fn, stall_timeout_secs=0.2).train(counting_input(), steps=6)


def test_a_checkpoint_that_hangs(tmp_path, caplog, impatient, monkeypatch):
    from jaxspec._src.checkpoint import checksums

    def hang(*args, real=checksums.write_manifest):
        until_warned(caplog, "training waits for the checkpoint")
        real(*args)

    monkeypatch.setattr(checksums, "write_manifest", hang)
    estimator(tmp_path, save=10, stall_timeout_secs=0.2).train(counting_input(), steps=2)
    assert "Thread jaxspec-checkpoint:" in caplog.text


def test_an_evaluation_within_a_training_is_watched_with_it(tmp_path, caplog, impatient):
    one = estimator(tmp_path, stall_timeout_secs=0.2)
    threads = []

    class Evaluates(SessionRunHook):
        def after_run(self, run_context, run_values):
            text = "training waits for the input, in evaluation, in hook Evaluates.after_run."
            one.evaluate(input_that_hangs(caplog, 3, text))
            threads.append([thread.name for thread in threading.enumerate()].count("jaxspec-watchdog"))

    one.train(counting_input(), steps=2, hooks=[Evaluates()])
    assert threads == [1]


def test_a_caller_that_holds_the_predictions_is_not_a_stall(tmp_path, caplog, monkeypatch, now):
    monkeypatch.setattr(watchdog_module.Watchdog.__init__, "__kwdefaults__", {"clock": now, "wait": now.wait})
    predictions = estimator(tmp_path).predict(counting_input(6))
    next(predictions)
    now.pass_secs(10 * STALL_SECS)
    now.end()
    assert len(list(predictions)) == 23
    assert "No progress" not in caplog.text


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-1, ValueError), ("900", TypeError), (True, TypeError)])
def test_the_time_is_a_positive_number(value, error):
    with pytest.raises(error, match="stall_timeout_secs should be"):
        js.RunConfig(stall_timeout_secs=value)
