"""Hooks and listeners around real runs: the order is the assertion."""

import threading

import jax
import numpy as np
import pytest
from tiny_models import counting_init, counting_input, counting_model_fn, run_config

import jaxspec as js
from jaxspec.checkpoint import checkpoint_steps
from jaxspec.hooks import SessionRunArgs, SessionRunHook


class Recorder(SessionRunHook):
    """Writes a line for each call."""

    def __init__(self, log, name="hook", fetches=None, **doing):
        self.log, self.name, self.fetches, self.doing = log, name, fetches, doing

    def _note(self, method, *values):
        self.log.append(" ".join([f"{self.name}.{method}", *map(str, values)]))

    def _do(self, method, at, context=None):
        action = self.doing.get(method, {}).get(at)
        if action == "stop":
            context.request_stop()
        elif action is not None:
            raise action

    def begin(self):
        self._note("begin")

    def after_create_session(self, session, coord):
        self._note("after_create_session", session.global_step)

    def before_run(self, run_context):
        self._note("before_run", f"{run_context.first_step}-{run_context.last_step}")
        self._do("before_run", run_context.first_step, run_context)
        return None if self.fetches is None else SessionRunArgs(self.fetches)

    def after_run(self, run_context, run_values):
        results = () if self.fetches is None else (run_values.results,)
        self._note("after_run", f"{run_context.first_step}-{run_context.last_step}", *results)
        self._do("after_run", run_context.last_step, run_context)

    def end(self, session):
        self._note("end", session.global_step)


class Listener(js.hooks.CheckpointSaverListener):
    def __init__(self, log, name="listener", model_dir=None, stop_at=None):
        self.log, self.name, self.model_dir, self.stop_at = log, name, model_dir, stop_at

    def begin(self):
        self.log.append(f"{self.name}.begin")

    def before_save(self, session, global_step):
        self.log.append(f"{self.name}.before_save {global_step}")

    def after_save(self, session, global_step):
        self.log.append(f"{self.name}.after_save {global_step}")
        if self.model_dir is not None:
            assert checkpoint_steps(self.model_dir)[-1] == global_step
        return global_step == self.stop_at

    def end(self, session, global_step):
        self.log.append(f"{self.name}.end {global_step}")


def counting(model_dir, log=None, every=4, save=1000, shards=1, **kwargs):
    """The counting model; with a log, its host_call and a hook of the spec write there too."""
    spec_hooks = None if log is None else [Recorder(log, "spec_hook")]

    def model_fn(variables, features, mode, step):
        spec = counting_model_fn(variables, features, mode)
        if mode == js.ModeKeys.PREDICT:
            return spec._replace(prediction_hooks=spec_hooks)
        calls = (
            None
            if log is None
            else (lambda step, x: log.append(f"host_call {int(step[0])}"), {"step": step, "x": features["x"]})
        )
        return spec._replace(training_hooks=spec_hooks, evaluation_hooks=spec_hooks, host_call=calls)

    config = run_config(save=save, every=every, num_shards=shards, **kwargs.pop("run", {}))
    sizes = dict.fromkeys(("train_batch_size", "eval_batch_size", "predict_batch_size"), 4)
    return js.TPUEstimator(model_fn, counting_init, model_dir=model_dir, config=config, **sizes, **kwargs)


def loops(start, stop, every, save, saved):
    """[(first, last)] of the loops from `start` to `stop`: they end at checkpoints."""
    out = []
    while start < stop:
        end = min(start + every, stop, saved + save)
        out.append((start, end - 1))
        start = end
        if end == saved + save:
            saved = end
    return out


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("every", [1, 4, 7])
def test_the_order_of_a_training_run_and_of_one_that_resumes(tmp_path, every, shards):
    for start, stop in ((0, 5), (5, 12)):
        log, of_spec = [], []
        estimator = counting(tmp_path, of_spec, every=every, save=6, shards=shards)
        estimator.train(
            counting_input(),
            max_steps=stop,
            hooks=[Recorder(log)],
            saving_listeners=[Listener(log, model_dir=tmp_path)],
        )
        expected = ["listener.begin", "hook.begin", f"listener.before_save {start}", f"listener.after_save {start}"]
        expected += [f"hook.after_create_session {start}"]
        for first, last in loops(start, stop, every, 6, start):
            expected.append(f"hook.before_run {first}-{last}")
            if last + 1 == start + 6:
                expected += [f"listener.before_save {last + 1}", f"listener.after_save {last + 1}"]
            expected.append(f"hook.after_run {first}-{last}")
        if stop != start + 6:
            expected += [f"listener.before_save {stop}", f"listener.after_save {stop}"]
        expected += [f"listener.end {stop}", f"hook.end {stop}"]
        assert log == expected
        # Hooks of the spec come last, and host_call has run for the steps of a loop before their after_run.
        expected = ["spec_hook.begin", f"spec_hook.after_create_session {start}"]
        for first, last in loops(start, stop, every, 6, start):
            expected.append(f"spec_hook.before_run {first}-{last}")
            expected += [f"host_call {step}" for step in range(first, last + 1)]
            expected.append(f"spec_hook.after_run {first}-{last}")
        assert of_spec == [*expected, f"spec_hook.end {stop}"]


def test_hooks_of_the_call_come_before_those_of_the_spec(tmp_path):
    log = []
    estimator = counting(tmp_path, log, every=2)
    estimator.train(counting_input(), steps=2, hooks=[Recorder(log, "a"), Recorder(log, "b")])
    assert [line for line in log if "before_run" in line] == [f"{n}.before_run 0-1" for n in ("a", "b", "spec_hook")]


@pytest.mark.parametrize("use_tpu", [True, False])
def test_the_order_of_an_evaluation_and_a_prediction(tmp_path, use_tpu):
    log = []
    estimator = counting(tmp_path, log, shards=4, use_tpu=use_tpu)
    estimator.evaluate(counting_input(3, rows=4), steps=2, hooks=[Recorder(log, fetches="loss")])
    assert log == [
        *("hook.begin", "spec_hook.begin", "hook.after_create_session 0", "spec_hook.after_create_session 0"),
        *(
            "hook.before_run 0-0",
            "spec_hook.before_run 0-0",
            "host_call 0",
            "hook.after_run 0-0 0.0",
            "spec_hook.after_run 0-0",
        ),
        *(
            "hook.before_run 1-1",
            "spec_hook.before_run 1-1",
            "host_call 0",
            "hook.after_run 1-1 1.0",
            "spec_hook.after_run 1-1",
        ),
        *("hook.end 0", "spec_hook.end 0"),
    ]
    log.clear()
    for row in estimator.predict(counting_input(2), hooks=[Recorder(log, fetches={"x": "predictions/x"})]):
        log.append(f"row {row['x']:g}")
    x = [f"{{'x': array({[float(i)] * 4}, dtype=float32)}}".replace(".0", ".") for i in range(2)]
    assert log == [
        *("hook.begin", "spec_hook.begin", "hook.after_create_session 0", "spec_hook.after_create_session 0"),
        *("hook.before_run 0-0", "spec_hook.before_run 0-0", f"hook.after_run 0-0 {x[0]}", "spec_hook.after_run 0-0"),
        *["row 0"] * 4,
        *("hook.before_run 1-1", "spec_hook.before_run 1-1", f"hook.after_run 1-1 {x[1]}", "spec_hook.after_run 1-1"),
        *["row 1"] * 4,
        # The end of the input: no after_run.
        *("hook.before_run 2-2", "spec_hook.before_run 2-2", "hook.end 0", "spec_hook.end 0"),
    ]


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("every", [1, 4, 7])
def test_the_end_of_the_input(tmp_path, every, shards):
    log = []
    counting(tmp_path, every=every, shards=shards).train(counting_input(8), hooks=[Recorder(log)])
    runs = {
        1: [line for i in range(8) for line in (f"hook.before_run {i}-{i}", f"hook.after_run {i}-{i}")]
        + ["hook.before_run 8-8"],
        4: [
            "hook.before_run 0-3",
            "hook.after_run 0-3",
            "hook.before_run 4-7",
            "hook.after_run 4-7",
            "hook.before_run 8-11",
        ],
        # Within a loop: last_step is corrected.
        7: ["hook.before_run 0-6", "hook.after_run 0-6", "hook.before_run 7-13", "hook.after_run 7-7"],
    }[every]
    assert log == ["hook.begin", "hook.after_create_session 0", *runs, "hook.end 8"]
    assert checkpoint_steps(tmp_path) == [0, 8]


@pytest.mark.parametrize("every", [1, 4, 7])
@pytest.mark.parametrize("method", ["before_run", "after_run"])
@pytest.mark.parametrize("action", ["stop", StopIteration()])
def test_stopping_early(tmp_path, every, method, action):
    log = []
    stopped = every if method == "before_run" else 2 * every - 1  # in the second loop
    hooks = [Recorder(log, "first"), Recorder(log, "stopper", **{method: {stopped: action}}), Recorder(log, "last")]
    counting(tmp_path, every=every).train(counting_input(), steps=50, hooks=hooks)
    steps = every if method == "before_run" and action != "stop" else 2 * every
    assert checkpoint_steps(tmp_path) == [0, steps]
    assert [line for line in log if ".end" in line] == [f"{name}.end {steps}" for name in ("first", "stopper", "last")]
    second = f"{every}-{2 * every - 1}"
    expected = {
        # A request lets the loop finish, and the other hooks see it.
        ("before_run", "stop"): [
            *(f"{n}.before_run {second}" for n in ("first", "stopper", "last")),
            *(f"{n}.after_run {second}" for n in ("first", "stopper", "last")),
        ],
        ("after_run", "stop"): [
            *(f"{n}.before_run {second}" for n in ("first", "stopper", "last")),
            *(f"{n}.after_run {second}" for n in ("first", "stopper", "last")),
        ],
        ("before_run", "raise"): [f"first.before_run {second}", f"stopper.before_run {second}"],
        ("after_run", "raise"): [
            *(f"{n}.before_run {second}" for n in ("first", "stopper", "last")),
            f"first.after_run {second}",
            f"stopper.after_run {second}",
        ],
    }[method, action if action == "stop" else "raise"]
    assert [line for line in log if second in line] == expected


@pytest.mark.parametrize("every", [1, 4, 7])
@pytest.mark.parametrize("method", ["begin", "after_create_session", "before_run", "after_run", "end"])
def test_an_error_in_a_hook_is_the_users_own(tmp_path, every, method):
    log = []

    class Failing(Recorder):
        pass

    def fail(self, *args):
        if method not in ("before_run", "after_run") or args[0].first_step == every:
            raise KeyError("mine")

    setattr(Failing, method, fail)
    estimator = counting(tmp_path, every=every)
    before = threading.enumerate()
    with pytest.raises(KeyError, match="mine") as caught:
        estimator.train(
            counting_input(), steps=3 * every, hooks=[Recorder(log, "first"), Failing(log), Recorder(log, "last")]
        )
    assert f"raised by Failing.{method}, in training" in caught.value.__notes__[0]
    steps = {"begin": None, "after_create_session": 0, "before_run": every, "after_run": 2 * every, "end": 3 * every}[
        method
    ]
    if steps is not None:
        assert f"at global step {steps}" in caught.value.__notes__[0]
    # No end, and no last checkpoint, but where the run had ended.
    assert [line for line in log if ".end" in line] == ([f"first.end {3 * every}"] if method == "end" else [])
    assert checkpoint_steps(tmp_path) == {"begin": [], "end": [0, 3 * every]}.get(method, [0])
    assert [thread.name for thread in threading.enumerate() if thread not in before and "jaxspec" in thread.name] == []
    estimator.train(counting_input(), max_steps=4 * every)
    assert estimator.get_variable_value("params/w") == 4 * every


def test_stopping_and_failing_in_evaluation_and_prediction(tmp_path):
    estimator = counting(tmp_path)
    for action, in_evaluation, in_prediction in (("stop", 0.5, 8), (StopIteration(), 0.5, 4)):
        log = []
        hook = Recorder(log, after_run={1: action})
        assert estimator.evaluate(counting_input(4), hooks=[hook])["loss"] == in_evaluation
        assert log[-2:] == ["hook.after_run 1-1", "hook.end 0"]
        assert len(list(estimator.predict(counting_input(4), hooks=[hook]))) == in_prediction
        assert log[-1] == "hook.end 0"
    for verb in ("evaluate", "predict"):
        log = []
        hook = Recorder(log, after_run={1: KeyError("mine")})
        with pytest.raises(KeyError, match="mine") as caught:
            list(getattr(estimator, verb)(counting_input(4), hooks=[hook]))
        assert "raised by Recorder.after_run, in" in caught.value.__notes__[0]
        assert log[-1] == "hook.after_run 1-1"
    with pytest.raises(ValueError, match="Evaluation was stopped by a hook before its first batch"):
        estimator.evaluate(counting_input(4), hooks=[Recorder([], before_run={0: StopIteration()})])


def test_a_prediction_closed_early_has_no_end(tmp_path):
    log = []
    rows = counting(tmp_path).predict(counting_input(4), hooks=[Recorder(log)])
    assert log == []
    next(rows)
    rows.close()
    assert log[-1] == "hook.after_run 0-0"


@pytest.mark.parametrize("every", [1, 4])
def test_fetches_come_in_the_structure_that_was_asked_for(tmp_path, every):
    log = []
    estimator = counting(tmp_path, log=[], every=every, shards=4)
    for fetches in ("loss", ["loss", "x"], {"a": "loss", "b": ["step", "global_step", "params/w"]}, [], ("loss",)):
        seen = []

        class Hook(SessionRunHook):
            def before_run(self, run_context, fetches=fetches):
                return SessionRunArgs(fetches)

            def after_run(self, run_context, run_values, seen=seen):
                seen.append(run_values.results)

        start = int(estimator.get_variable_value("global_step")) if log else 0
        estimator.train(counting_input(), steps=4, hooks=[Hook()])
        log.append(start)
        value = {"loss": 3.0, "x": [3.0] * 4, "step": start + 3, "global_step": start + 4, "params/w": start + 4.0}
        expected = jax.tree.map({name: np.asarray(one) for name, one in value.items()}.get, fetches)
        assert jax.tree.structure(seen[-1]) == jax.tree.structure(expected)
        jax.tree.map(np.testing.assert_array_equal, seen[-1], expected)
        assert len(seen) == 4 // every


def test_the_session_gives_state_loss_and_spec(tmp_path):
    kept = []

    class Hook(SessionRunHook):
        def after_create_session(self, session, coord):
            assert session.loss is None
            assert session.spec is None
            kept.append(session.state)

        def after_run(self, run_context, run_values):
            session = run_context.session
            assert session.global_step == run_context.last_step + 1
            assert session.loss == run_context.last_step
            np.testing.assert_array_equal(session.spec.host_call[1]["x"], np.full(4, run_context.last_step))
            kept.append(session.state)

    counting(tmp_path, log=[], every=2, shards=4).train(counting_input(), steps=6, hooks=[Hook()])
    # They stay good, whatever training does with the live one.
    assert [float(state.variables["params"]["w"]) for state in kept] == [0, 2, 4, 6]
    assert [int(state.step) for state in kept] == [0, 2, 4, 6]


def _never(*args):
    raise AssertionError("not called")


@pytest.mark.parametrize("given", ["int", "class", "one hook"])
def test_what_is_no_hook(tmp_path, given):
    hooks = {"int": [3], "class": [Recorder], "one hook": Recorder([])}[given]
    text = {
        "int": "All hooks must be SessionRunHook instances, given in hooks: 3",
        "class": r"write Recorder\(\)",
        "one hook": r"write \[hooks\]",
    }
    estimator = counting(tmp_path)
    for verb in ("train", "evaluate", "predict"):
        with pytest.raises(TypeError, match=text[given]):
            getattr(estimator, verb)(_never, hooks=hooks)


def test_a_hook_with_a_wrong_signature(tmp_path):
    class Wrong(SessionRunHook):
        def after_run(self, run_context):
            pass

    with pytest.raises(
        TypeError,
        match=r"Wrong.after_run has a wrong signature, after_run\(self, run_context\).*write def after_run\(self, run_context, run_values\)",
    ):
        counting(tmp_path).train(_never, steps=1, hooks=[Wrong()])

    class WrongListener(js.hooks.CheckpointSaverListener):
        def after_save(self):
            pass

    with pytest.raises(
        TypeError, match=r"WrongListener.after_save has a wrong signature.*def after_save\(self, session, global_step\)"
    ):
        counting(tmp_path).train(_never, steps=1, saving_listeners=[WrongListener()])


def test_fetches_of_unknown_names(tmp_path):
    estimator = counting(tmp_path, log=[])
    with pytest.raises(
        ValueError, match=r"unknown fetch 'los'. The names here are \['global_step', 'loss', 'step', 'x'\]"
    ):
        estimator.train(counting_input(), steps=1, hooks=[Recorder([], fetches={"a": ["los"]})])
    with pytest.raises(TypeError, match="a fetch is the name of a tensor, got 3"):
        estimator.train(counting_input(), steps=1, hooks=[Recorder([], fetches=[3])])

    class NoArgs(SessionRunHook):
        def before_run(self, run_context):
            return "loss"

    with pytest.raises(TypeError, match=r"NoArgs.before_run returned 'loss'; return SessionRunArgs\('loss'\)"):
        estimator.train(counting_input(), steps=1, hooks=[NoArgs()])


def test_listeners(tmp_path):
    log = []
    estimator = counting(tmp_path, save=2)
    one, two = Listener(log, "one", stop_at=4), Listener(log, "two")
    estimator.train(counting_input(), steps=10, saving_listeners=[one, two, one])
    saves = [
        line
        for step in (0, 2, 4)
        for method in ("before", "after")
        for line in (f"one.{method}_save {step}", f"two.{method}_save {step}")
    ]
    assert log == ["one.begin", "two.begin", *saves, "one.end 4", "two.end 4"]
    # The checkpoint at the start does not stop.
    estimator.train(counting_input(), steps=3, saving_listeners=[one])
    assert estimator.get_variable_value("params/w") == 7
    with pytest.raises(TypeError, match="saving_listeners must be a list of CheckpointSaverListener, given: 3"):
        estimator.train(_never, steps=1, saving_listeners=[3])
    with pytest.raises(TypeError, match="saving_listeners must be a list of CheckpointSaverListener, given: <"):
        estimator.train(_never, steps=1, saving_listeners=one)
    off = counting(tmp_path / "off", save=None)
    with pytest.raises(ValueError, match="There should be a CheckpointSaverHook to use saving_listeners"):
        off.train(counting_input(), steps=1, saving_listeners=[one])


@pytest.mark.parametrize("place", ["hooks", "spec"])
def test_a_saver_of_the_user_replaces_the_automatic_one(tmp_path, place):
    log = []
    saver = js.hooks.CheckpointSaverHook(tmp_path, save_steps=3, listeners=[Listener(log, "mine")])

    def model_fn(variables, features, mode):
        hooks = [saver] if place == "spec" else None
        return counting_model_fn(variables, features, mode)._replace(training_hooks=hooks)

    config = run_config(save=2, every=20, num_shards=1)
    sizes = {"train_batch_size": 4, "eval_batch_size": 4}
    estimator = js.TPUEstimator(model_fn, counting_init, model_dir=tmp_path, config=config, **sizes)
    hooks = [saver] if place == "hooks" else None
    for start in (0, 10):
        log.clear()
        estimator.train(counting_input(), steps=10, hooks=hooks, saving_listeners=[Listener(log, "given")])
        saves = [
            f"{name}.{method}_save {start + step}"
            for step in (0, 3, 6, 9, 10)
            for method in ("before", "after")
            for name in ("mine", "given")
        ]
        assert log == ["mine.begin", "given.begin", *saves, f"mine.end {start + 10}", f"given.end {start + 10}"]
    with pytest.raises(TypeError, match="CheckpointSaverHook belongs to training"):
        estimator.evaluate(counting_input(1), hooks=[saver])


def test_evaluating_in_a_hook_sees_the_live_state(tmp_path):
    seen = []
    estimator = counting(tmp_path, every=2)

    class Evaluate(SessionRunHook):
        def after_run(self, run_context, run_values):
            seen.append(estimator.evaluate(counting_input(1))["global_step"])

    estimator.train(counting_input(), steps=6, hooks=[Evaluate()])
    assert seen == [2, 4, 6]
    assert estimator.get_variable_value("params/w") == 6
