"""train_and_evaluate, its specs, and checkpoints_iterator."""

import dataclasses
import logging
import os
import pathlib
import shutil
import threading
import time

import numpy as np
import pytest
from tiny_models import counting_init, counting_input, counting_model_fn, run_config

import jaxspec as js
from jaxspec import EvalSpec, Exporter, FinalExporter, TrainSpec, checkpoint, checkpoints_iterator, train_and_evaluate
from jaxspec._src.checkpoint import checksums, restore
from jaxspec._src.checkpoint.latest import checkpoint_path, checkpoint_steps
from jaxspec._src.summary.event_reader import read_scalars


def counting(model_dir, save=4, every=1, shards=1, **kwargs):
    config = run_config(save=save, every=every, num_shards=shards, keep_checkpoint_max=None, **kwargs)
    return js.TPUEstimator(
        counting_model_fn, counting_init, model_dir=model_dir, config=config, train_batch_size=4, eval_batch_size=4
    )


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """An estimator of one shard that tests share, for its compiled programs. It saves every 2 steps."""
    return counting(tmp_path_factory.mktemp("compiled"), save=2)


@pytest.fixture
def fresh(compiled):
    """The shared estimator, back at the start."""
    for name in os.listdir(compiled.model_dir):
        shutil.rmtree(path) if os.path.isdir(path := os.path.join(compiled.model_dir, name)) else os.remove(path)
    return compiled


class Recorder:
    """Notes what is called, in order."""

    def __init__(self):
        self.log = []

    def input_fn(self, name, count=None):
        def input_fn():
            self.log.append(f"{name} input_fn")
            return counting_input(count)()

        return input_fn

    def hook(self, name):
        log = self.log

        class Hook(js.hooks.SessionRunHook):
            def begin(self):
                log.append(f"{name}.begin")

            def after_create_session(self, session, coord):
                log.append(f"{name}.after_create_session {session.global_step}")

            def before_run(self, run_context):
                log.append(f"{name}.before_run {run_context.session.global_step}")

            def after_run(self, run_context, run_values):
                log.append(f"{name}.after_run {run_context.session.global_step}")

            def end(self, session):
                log.append(f"{name}.end {session.global_step}")

        return Hook()

    def listener(self, stop_at=None):
        log = self.log

        class Listener(js.hooks.CheckpointSaverListener):
            def begin(self):
                log.append("listener.begin")

            def before_save(self, session, global_step):
                log.append(f"listener.before_save {global_step}")

            def after_save(self, session, global_step):
                log.append(f"listener.after_save {global_step}")
                return global_step == stop_at

            def end(self, session, global_step):
                log.append(f"listener.end {global_step}")

        return Listener()

    def exporter(self, exporter_name="one"):
        log = self.log

        class Recording(Exporter):
            @property
            def name(self):
                return exporter_name

            def export(self, estimator, export_path, checkpoint_path, eval_result, is_the_final_export):
                assert export_path == os.path.join(estimator.model_dir, "export", exporter_name)
                assert os.path.isdir(checkpoint_path)
                step = eval_result["global_step"]
                assert checkpoint_path == estimator.latest_checkpoint()
                log.append(f"{exporter_name} {os.path.basename(checkpoint_path)} final={is_the_final_export}")
                return f"result of {exporter_name} at {step}"

        return Recording()

    def starting_with(self, *prefixes):
        return [entry for entry in self.log if entry.startswith(prefixes)]


def run(estimator, recorder, max_steps=None, *, train_hooks=(), listeners=(), train_batches=None, clock=None, **spec):
    """train_and_evaluate, everything recorded; evaluation takes 2 batches."""
    spec = {"steps": 2, "throttle_secs": 0, "exporters": recorder.exporter(), **spec}
    return train_and_evaluate(
        estimator,
        TrainSpec(recorder.input_fn("train", train_batches), max_steps, train_hooks, listeners),
        EvalSpec(recorder.input_fn("eval", 3), **spec),
        **({} if clock is None else {"clock": clock}),
    )


# The specs.


def test_train_spec():
    def input_fn(params):
        return []

    spec = TrainSpec(input_fn)
    assert (spec.input_fn, spec.max_steps, spec.hooks, spec.saving_listeners) == (input_fn, None, (), ())
    hook, listener = js.hooks.SessionRunHook(), js.hooks.CheckpointSaverListener()
    spec = TrainSpec(input_fn, 5, [hook], [listener])
    assert (spec.max_steps, spec.hooks, spec.saving_listeners) == (5, (hook,), (listener,))
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.max_steps = 7
    assert dataclasses.replace(spec, max_steps=7).hooks == (hook,)


def test_eval_spec():
    def input_fn():
        return []

    spec = EvalSpec(input_fn)
    assert (spec.steps, spec.name, spec.hooks, spec.exporters) == (100, None, (), ())
    assert (spec.start_delay_secs, spec.throttle_secs) == (120, 600)
    hook, one, two = js.hooks.SessionRunHook(), FinalExporter("one", None), FinalExporter("two", None)
    spec = EvalSpec(input_fn, None, "dev", [hook], iter([one, two]), 0, 5)
    assert (spec.steps, spec.name, spec.hooks, spec.exporters) == (None, "dev", (hook,), (one, two))
    assert (spec.start_delay_secs, spec.throttle_secs) == (0, 5)
    assert EvalSpec(input_fn, exporters=one).exporters == (one,)
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.steps = 7


class NamedExporter(Exporter):
    """An exporter of any name."""

    name = None

    def __init__(self, name):
        self.name = name

    def export(self, estimator, export_path, checkpoint_path, eval_result, is_the_final_export):
        return None


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: TrainSpec(),
            TypeError,
            "input_fn must be callable, given: None. Write a function that returns batches",
        ),
        (lambda: TrainSpec("text"), TypeError, "input_fn must be callable, given: 'text'. Write a function"),
        (lambda: TrainSpec(lambda features: 0), ValueError, r"not expected args: \['features'\]"),
        (lambda: TrainSpec(list, max_steps=-1), ValueError, "Train max_steps should be > 0, got -1"),
        (lambda: TrainSpec(list, max_steps="5"), TypeError, "Train max_steps should be a whole number, got '5'"),
        (
            lambda: TrainSpec(list, hooks=[5]),
            TypeError,
            "All hooks must be SessionRunHook instances, given in hooks: 5",
        ),
        (
            lambda: TrainSpec(list, saving_listeners=[js.hooks.SessionRunHook()]),
            TypeError,
            "saving_listeners must be a list of CheckpointSaverListener, given: .* pass an instance",
        ),
        (
            lambda: EvalSpec(),
            TypeError,
            "input_fn must be callable, given: None. Write a function that returns batches",
        ),
        (
            lambda: EvalSpec(list, throttle_secs=None),
            TypeError,
            "throttle_secs should be a number, got None",
        ),
        (
            lambda: EvalSpec(list, exporters=NamedExporter("../a")),
            ValueError,
            "name must be that of one directory, given: '../a'",
        ),
        (lambda: EvalSpec(None), TypeError, "input_fn must be callable, given: None. Write a function"),
        (lambda: EvalSpec(list, steps=0), ValueError, "Eval steps should be > 0, got 0"),
        (
            lambda: EvalSpec(list, name=5),
            TypeError,
            "`name` must be string, given: 5. It names the directory eval_NAME",
        ),
        (lambda: EvalSpec(list, hooks=["x"]), TypeError, "All hooks must be SessionRunHook instances"),
        (
            lambda: EvalSpec(list, start_delay_secs=-1),
            ValueError,
            "start_delay_secs should be >= 0, got -1",
        ),
        (
            lambda: EvalSpec(list, throttle_secs=-2),
            ValueError,
            "throttle_secs should be >= 0, got -2",
        ),
        (
            lambda: EvalSpec(list, exporters=3),
            TypeError,
            "must be an Exporter, an iterable of Exporter, or `None`, found 3",
        ),
        (
            lambda: EvalSpec(list, exporters=[FinalExporter]),
            TypeError,
            "must be an Exporter, .* found <class .*FinalExporter'>. .* pass an instance",
        ),
        (
            lambda: EvalSpec(list, exporters=[FinalExporter("a", None), NamedExporter("")]),
            ValueError,
            r"cannot have a name that is `None` or empty. All exporter names: \['a', ''\]. Give it one",
        ),
        (
            lambda: EvalSpec(list, exporters=NamedExporter(None)),
            ValueError,
            "cannot have a name that is `None` or empty",
        ),
        (
            lambda: EvalSpec(list, exporters=NamedExporter(5)),
            ValueError,
            "An Exporter must have a string name. Given: <class 'int'>, 5",
        ),
        (
            lambda: EvalSpec(list, exporters=[NamedExporter("x"), NamedExporter("x")]),
            ValueError,
            r"must have unique names. .* All exporter names: \['x', 'x'\]. .* give each a name of its own",
        ),
    ],
)
def test_what_the_specs_refuse(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_train_and_evaluate_checks_the_types_of_its_arguments(tmp_path):
    estimator, train_spec, eval_spec = counting(tmp_path), TrainSpec(list), EvalSpec(list)
    with pytest.raises(TypeError, match=r"`estimator` must have type `jaxspec.TPUEstimator`. Got: <class 'str'>"):
        train_and_evaluate("estimator", train_spec, eval_spec)
    with pytest.raises(TypeError, match=r"`train_spec` must have type `jaxspec.TrainSpec`. Got: <class 'NoneType'>"):
        train_and_evaluate(estimator, None, eval_spec)
    with pytest.raises(TypeError, match=r"`eval_spec` must have type `jaxspec.EvalSpec`. Got: .*TrainSpec"):
        train_and_evaluate(estimator, train_spec, train_spec)


# The order of things.


@pytest.mark.parametrize(("shards", "every"), [(1, 1), (4, 1), (1, 4), (4, 7)])
def test_the_order(tmp_path, shards, every):
    estimator, recorder = counting(tmp_path, every=every, shards=shards), Recorder()
    metrics, exports = run(
        estimator,
        recorder,
        10,
        train_hooks=[recorder.hook("train_hook")],
        listeners=[recorder.listener()],
        hooks=[recorder.hook("eval_hook")],
        exporters=[recorder.exporter("one"), recorder.exporter("two")],
    )
    assert metrics == {"mean_x": 0.5, "loss": 0.5, "global_step": 10}
    assert exports == ["result of one at 10", "result of two at 10"]
    ends = {1: list(range(1, 11)), 4: [4, 8, 10], 7: [4, 8, 10]}[every]

    def evaluation(step, final):
        return [
            f"listener.before_save {step}",
            f"listener.after_save {step}",
            "eval input_fn",
            "eval_hook.begin",
            f"eval_hook.after_create_session {step}",
            *[f"eval_hook.before_run {step}", f"eval_hook.after_run {step}"] * 2,
            f"eval_hook.end {step}",
            f"one model.ckpt-{step} final={final}",
            f"two model.ckpt-{step} final={final}",
        ]

    expected = [
        "train input_fn",
        "listener.begin",
        "train_hook.begin",
        "listener.before_save 0",
        "listener.after_save 0",
    ]
    expected += ["train_hook.after_create_session 0"]
    for begin, end in zip([0, *ends], ends, strict=False):
        expected += [f"train_hook.before_run {begin}"]
        expected += evaluation(end, False) if end in (4, 8) else []
        expected += [f"train_hook.after_run {end}"]
    expected += [*evaluation(10, True), "listener.end 10", "train_hook.end 10"]
    assert recorder.log == expected
    assert checkpoint_steps(tmp_path) == [0, 4, 8, 10]
    events = read_scalars(estimator.eval_dir())
    assert events == {step: {"mean_x": 0.5, "loss": 0.5} for step in (4, 8, 10)}


def test_evaluation_reads_no_checkpoint(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a checkpoint was read")

    monkeypatch.setattr(restore, "read_variables", refuse)
    assert run(counting(tmp_path), Recorder(), 6)[0]["global_step"] == 6


@pytest.mark.parametrize(
    ("throttle", "evaluated"), [(0, [2, 4, 6, 8, 10]), (3, [2, 6, 10]), (4, [2, 6, 10]), (600, [2, 10])]
)
def test_throttle(fresh, throttle, evaluated, caplog):
    seconds = [0]

    class OneSecond(js.hooks.SessionRunHook):
        def before_run(self, run_context):
            seconds[0] += 1

    recorder = Recorder()
    with caplog.at_level(logging.INFO, "jaxspec"):
        run(
            fresh,
            recorder,
            10,
            train_hooks=[OneSecond()],
            throttle_secs=throttle,
            clock=lambda: seconds[0],
        )
    expected = [f"one model.ckpt-{step} final={step == 10}" for step in evaluated]
    assert recorder.starting_with("one") == expected
    skipped = f"Skip the current checkpoint eval due to throttle secs ({throttle} secs)."
    assert (skipped in caplog.messages) == (throttle > 0)
    assert any("save_checkpoints_steps 2 or save_checkpoints_secs None" in message for message in caplog.messages)


def test_again(tmp_path):
    recorder = Recorder()
    run(counting(tmp_path), recorder, 5)
    assert recorder.starting_with("one") == ["one model.ckpt-4 final=False", "one model.ckpt-5 final=True"]
    recorder = Recorder()
    assert run(counting(tmp_path), recorder, 5) == (None, None)
    assert recorder.log == []
    metrics, exports = run(counting(tmp_path), recorder, 7)
    assert (metrics["global_step"], exports) == (7, ["result of one at 7"])
    assert recorder.log == ["train input_fn", "eval input_fn", "one model.ckpt-7 final=True"]
    assert checkpoint_steps(tmp_path) == [0, 4, 5, 7]


def test_without_max_steps_the_end_of_the_input_ends_it_and_nothing_is_final(fresh):
    recorder = Recorder()
    metrics, _ = run(fresh, recorder, train_batches=6, steps=None, name="dev")
    assert metrics == {"mean_x": 1.0, "loss": 1.0, "global_step": 6}
    assert recorder.starting_with("one") == [f"one model.ckpt-{step} final=False" for step in (2, 4, 6)]
    assert list(read_scalars(fresh.eval_dir("dev"))) == [2, 4, 6]
    assert not os.path.exists(fresh.eval_dir())


def test_without_exporters_the_list_is_empty(fresh):
    assert run(fresh, Recorder(), 3, exporters=None)[1] == []


# Ends of other kinds.


def test_a_listener_that_asks_to_stop(fresh):
    recorder = Recorder()
    metrics, _ = run(fresh, recorder, 10, listeners=[recorder.listener(stop_at=4)])
    assert metrics["global_step"] == 4
    assert recorder.log == [
        "train input_fn",
        "listener.begin",
        *["listener.before_save 0", "listener.after_save 0"],
        *["listener.before_save 2", "listener.after_save 2", "eval input_fn", "one model.ckpt-2 final=False"],
        *["listener.before_save 4", "listener.after_save 4", "eval input_fn", "one model.ckpt-4 final=False"],
        "listener.end 4",
    ]


def test_a_hook_that_asks_to_stop(fresh):
    class StopAtThree(js.hooks.SessionRunHook):
        def after_run(self, run_context, run_values):
            if run_context.session.global_step == 3:
                run_context.request_stop()

    recorder = Recorder()
    metrics, _ = run(fresh, recorder, 10, train_hooks=[StopAtThree()])
    assert metrics["global_step"] == 3
    assert recorder.starting_with("one") == ["one model.ckpt-2 final=False", "one model.ckpt-3 final=False"]


def test_checkpoints_switched_off(tmp_path):
    with pytest.raises(
        ValueError, match="There should be a CheckpointSaverHook to use saving_listeners. Please set one"
    ):
        run(counting(tmp_path, save=None), Recorder(), 3)


def test_checkpoints_that_go_elsewhere(tmp_path):
    saver = js.hooks.CheckpointSaverHook(tmp_path / "elsewhere", save_steps=2)
    with pytest.raises(
        RuntimeError, match=r"no new checkpoint after the training. .* is None, .* leave out its checkpoint_dir"
    ):
        run(counting(tmp_path / "model"), Recorder(), 3, train_hooks=[saver])


@pytest.mark.parametrize("shards", [1, 4])
def test_an_evaluation_that_fails(tmp_path, shards):
    threads = set(threading.enumerate())

    def input_fn():
        raise KeyError("scripted")

    estimator, recorder = counting(tmp_path, save=2, shards=shards), Recorder()
    with pytest.raises(KeyError, match="scripted"):
        train_and_evaluate(estimator, TrainSpec(recorder.input_fn("train"), 6), EvalSpec(input_fn, throttle_secs=0))
    assert set(threading.enumerate()) <= threads
    assert checkpoint_steps(tmp_path) == [0, 2]
    recorder = Recorder()
    assert run(estimator, recorder, 6)[0]["global_step"] == 6
    assert recorder.starting_with("one") == ["one model.ckpt-4 final=False", "one model.ckpt-6 final=True"]


def test_an_exporter_that_fails(fresh):
    class Failing(NamedExporter):
        def export(self, estimator, export_path, checkpoint_path, eval_result, is_the_final_export):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run(fresh, Recorder(), 6, exporters=Failing("x"))


def test_training_is_what_it_is_without_evaluation(tmp_path):
    """Evaluation on the live state leaves it, and the input, alone."""
    together, alone = counting(tmp_path / "a"), counting(tmp_path / "b")
    run(together, Recorder(), 10)
    alone.train(counting_input(), max_steps=10)
    for name in alone.get_variable_names():
        np.testing.assert_array_equal(together.get_variable_value(name), alone.get_variable_value(name))


# checkpoints_iterator.


def make_checkpoint(directory, step):
    """An undamaged one, in which there is nothing."""
    os.makedirs(checkpoint_path(directory, step))
    checksums.write_manifest(checkpoint_path(directory, step), step)


class FakeTime:
    """A clock that only sleeping moves; what is due by then happens."""

    def __init__(self, directory=None, checkpoints=()):
        self.now, self.slept, self._directory, self._due = 0.0, [], directory, sorted(checkpoints)

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        self.slept.append(seconds)
        while self._due and self._due[0][0] <= self.now:
            make_checkpoint(self._directory, self._due.pop(0)[1])


def steps_and_times(time, directory, **kwargs):
    paths = checkpoints_iterator(directory, clock=time.clock, sleep=time.sleep, **kwargs)
    return [(checkpoint.checkpoint_step(path), time.now) for path in paths]


def test_it_yields_each_new_checkpoint(tmp_path):
    time = FakeTime(tmp_path, [(2, 10), (5, 20), (5, 30)])
    assert steps_and_times(time, tmp_path, timeout=4) == [(10, 2), (30, 5)]
    assert time.now == 9


def test_the_directory_need_not_exist(tmp_path):
    time = FakeTime(tmp_path / "later", [(3, 1)])
    assert steps_and_times(time, tmp_path / "later", timeout=3) == [(1, 3)]


def test_a_checkpoint_that_is_being_written_does_not_count(tmp_path):
    os.makedirs(f"{checkpoint_path(tmp_path, 8)}.orbax-checkpoint-tmp")
    assert steps_and_times(FakeTime(), tmp_path, timeout=2) == []


def test_min_interval(tmp_path):
    make_checkpoint(tmp_path, 1)
    time = FakeTime(tmp_path, [(2, 2), (30, 3)])
    assert steps_and_times(time, tmp_path, min_interval_secs=10, timeout=15) == [(1, 0), (2, 10), (3, 30)]


def test_the_time_that_the_caller_takes_counts_for_the_interval(tmp_path):
    time = FakeTime()
    make_checkpoint(tmp_path, 1)
    iterator = checkpoints_iterator(tmp_path, min_interval_secs=10, timeout=0, clock=time.clock, sleep=time.sleep)
    next(iterator)
    time.now += 7
    assert list(iterator) == []
    assert time.slept == [3]


def test_timeout_fn_decides_whether_to_go_on(tmp_path, caplog):
    answers = [False, False, True]
    time = FakeTime(tmp_path, [(3, 1)])
    assert steps_and_times(time, tmp_path, timeout=2, timeout_fn=lambda: answers.pop(0)) == [(1, 3)]
    assert answers == []
    with caplog.at_level(logging.INFO, "jaxspec"):
        assert steps_and_times(time, tmp_path, timeout=0) == [(1, 7)]
    assert f"Timed out waiting for a new checkpoint at {tmp_path}." in caplog.messages


def test_damaged_checkpoints_are_skipped_with_one_warning_each_until_they_are_whole(tmp_path, caplog):
    class Copied(FakeTime):
        """Step 2 comes in part, and is whole at last; step 3 stays damaged."""

        def sleep(self, seconds):
            super().sleep(seconds)
            for step in (2, 3):
                if self.now == step:
                    os.makedirs(checkpoint_path(tmp_path, step))
            if self.now == 6:
                checksums.write_manifest(checkpoint_path(tmp_path, 2), 2)

    make_checkpoint(tmp_path, 1)
    assert steps_and_times(Copied(), tmp_path, timeout=7) == [(1, 0), (2, 6)]
    assert [message.partition(" is damaged: ")[0] for message in caplog.messages] == [
        f"the checkpoint {checkpoint_path(tmp_path, step)}" for step in (2, 3)
    ]


def test_the_bytes_of_a_damaged_checkpoint_are_read_once(tmp_path, monkeypatch, caplog):
    make_checkpoint(tmp_path, 1)
    path = pathlib.Path(checkpoint_path(tmp_path, 2))
    path.mkdir()
    (path / "data").write_bytes(b"12")
    checksums.write_manifest(str(path), 2)
    (path / "data").write_bytes(b"13")
    read, crc = [], checksums._crc
    monkeypatch.setattr(checksums, "_crc", lambda *args: read.append(args) or crc(*args))
    assert steps_and_times(FakeTime(), tmp_path, timeout=5) == [(1, 0)]
    assert "has other bytes than were written" in caplog.text
    assert len(read) == 1


def test_a_checkpoint_that_is_removed_under_its_reader_is_an_error_for_it_and_the_iterator_goes_on(tmp_path):
    estimator = js.TPUEstimator(
        counting_model_fn, counting_init, model_dir=tmp_path, use_tpu=False, config=run_config(save=1)
    )
    estimator.train(counting_input(), steps=1)
    time, results = FakeTime(), []
    for path in checkpoints_iterator(tmp_path, timeout=0, clock=time.clock, sleep=time.sleep):
        if not results:
            estimator.train(counting_input(), steps=1)
            shutil.rmtree(path)
            with pytest.raises(FileNotFoundError, match="model.ckpt-1"):
                estimator.evaluate(counting_input(1), checkpoint_path=path)
        results.append(estimator.evaluate(counting_input(1))["global_step"])
    assert results == [2, 2]


def test_a_checkpoint_that_is_removed_while_the_iterator_looks_at_it_is_left_out(tmp_path, monkeypatch):
    for step in (1, 2):
        make_checkpoint(tmp_path, step)
    verify = checksums.verify

    def removing(path, step):
        if step == 2:
            shutil.rmtree(path, ignore_errors=True)
        verify(path, step)

    monkeypatch.setattr(checksums, "verify", removing)
    assert steps_and_times(FakeTime(), tmp_path, timeout=0) == [(1, 0)]


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"min_interval_secs": -1}, ValueError, "min_interval_secs should be >= 0, got -1"),
        ({"timeout": -3}, ValueError, "timeout should be >= 0, got -3"),
        ({"timeout_fn": 3}, TypeError, "timeout_fn must be callable, given: 3. Write a function without arguments"),
    ],
)
def test_what_the_iterator_refuses_when_it_is_made(tmp_path, kwargs, error, message):
    with pytest.raises(error, match=message):
        checkpoints_iterator(tmp_path, **kwargs)


class Sleeps(js.hooks.SessionRunHook):
    def end(self, session):
        time.sleep(1)


def test_the_time_of_evaluations_counts_for_no_rate_of_training(tmp_path):
    estimator = js.TPUEstimator(
        counting_model_fn,
        counting_init,
        model_dir=tmp_path,
        train_batch_size=4,
        eval_batch_size=4,
        config=run_config(save=5, every=1, num_shards=1, log_step_count_steps=4, save_summary_steps=100),
    )
    estimator.train(counting_input(), steps=1).evaluate(counting_input(1))  # compiles

    js.train_and_evaluate(
        estimator,
        TrainSpec(counting_input(), max_steps=12),
        EvalSpec(counting_input(1), hooks=[Sleeps()], throttle_secs=0),
    )
    rates = [values["global_step/sec"] for values in read_scalars(tmp_path).values() if "global_step/sec" in values]
    assert len(rates) == 2
    assert min(rates) > 4  # 4 steps in less than the second that the evaluation at step 6 takes
