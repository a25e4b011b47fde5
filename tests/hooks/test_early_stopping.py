"""Early stopping by the evaluations so far, on real runs."""

import logging
import os
import shutil
import struct

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tensorboardX.record_writer import masked_crc32c
from tiny_models import counting_init, counting_input, counting_model_fn, run_config

import jaxspec as js
from jaxspec import EvalSpec, TrainSpec, train_and_evaluate
from jaxspec._src.checkpoint.latest import checkpoint_path, checkpoint_steps
from jaxspec.hooks import (
    make_early_stopping_hook,
    read_eval_metrics,
    stop_if_higher_hook,
    stop_if_lower_hook,
    stop_if_no_decrease_hook,
    stop_if_no_increase_hook,
)
from jaxspec.summary import create_file_writer

SCORES = [0.5, 0.4, 0.6, 0.45, 0.41, 0.3, 0.2, 0.25, 0.1, 0.35, 0.05, 0.2]
"""The metric `score` by the global step of its evaluation."""


def scripted_model_fn(variables, features, mode):
    """`w` counts the steps; `score` is what SCORES says for it, the loss is 0."""
    w, x = variables["params"]["w"], features["x"]
    return js.TPUEstimatorSpec(
        mode,
        loss=0.0 * x.mean(),
        train_op=js.minimize(optax.sgd(1.0), lambda v: -v["params"]["w"]),
        eval_metrics=(lambda w: {"score": js.metrics.mean(np.asarray(SCORES)[int(w[0])])}, [jnp.zeros_like(x) + w]),
    )


def scripted(model_dir, save=1, every=1, shards=1, rows=4):
    config = run_config(save=save, every=every, num_shards=shards, keep_checkpoint_max=None)
    return js.TPUEstimator(
        scripted_model_fn,
        counting_init,
        model_dir=model_dir,
        config=config,
        train_batch_size=rows,
        eval_batch_size=rows,
    )


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """An estimator of one shard that tests share, for its compiled programs."""
    return scripted(tmp_path_factory.mktemp("compiled"))


@pytest.fixture
def fresh(compiled):
    """The shared estimator, back at the start."""
    for name in os.listdir(compiled.model_dir):
        shutil.rmtree(path) if os.path.isdir(path := os.path.join(compiled.model_dir, name)) else os.remove(path)
    return compiled


def run(estimator, make_hook, *args, max_steps=11, name=None, **kwargs):
    """Trains with an evaluation at each checkpoint and the hook that `make_hook` makes; returns the last global
    step."""
    kwargs = {"run_every_secs": None, "run_every_steps": 1, **kwargs}
    train_and_evaluate(
        estimator,
        TrainSpec(counting_input(), max_steps, [make_hook(estimator, *args, **kwargs)]),
        EvalSpec(counting_input(1), name=name, throttle_secs=0),
    )
    return last_step(estimator)


def last_step(estimator):
    return js.load_global_step(estimator.model_dir)


class Evaluated:
    """Stands for an estimator whose evaluations are given: {step: {tag: value}}."""

    def __init__(self, directory, evaluations):
        self._directory = str(directory)
        writer = create_file_writer(directory)
        for step, metrics in evaluations.items():
            for tag, value in metrics.items():
                writer.scalar(tag, value, step)
        writer.flush()

    def eval_dir(self, name=None):
        return self._directory + (name or "")


class View:
    """Stands for the session."""

    def __init__(self, step):
        self.global_step = step


def asked(hook, steps, start=0):
    """Runs a hook by hand through loops that end at `steps`; returns where it stops, or None."""
    view = View(start)
    hook.begin()
    hook.after_create_session(view, None)
    for end in steps:
        context = js.hooks.SessionRunContext(view, view.global_step, end - 1)
        try:
            hook.before_run(context)
        except StopIteration:
            return view.global_step
        view.global_step = end
        hook.after_run(context, js.hooks.SessionRunValues(None))
        if context.stop_requested:
            return end
    return None


# What stops, and when.


@pytest.mark.parametrize(
    ("make", "args", "kwargs", "stops"),
    [
        (stop_if_no_decrease_hook, ("score", 3), {}, 4),
        (stop_if_no_increase_hook, ("score", 3), {}, 5),
        (stop_if_lower_hook, ("score", 0.28), {}, 6),
        (stop_if_higher_hook, ("score", 0.28), {}, 1),
        (stop_if_no_decrease_hook, ("score", 3), {"min_steps": 2}, 11),
        (stop_if_lower_hook, ("score", 0.28), {"run_every_steps": 4}, 9),
        (stop_if_no_decrease_hook, ("loss", 2), {}, 3),
    ],
)
def test_the_rules(fresh, make, args, kwargs, stops):
    assert run(fresh, make, *args, **kwargs) == stops


@pytest.mark.parametrize(("shards", "every"), [(4, 1), (4, 7), (1, 4)])
def test_shards_and_loops(tmp_path, shards, every):
    """Evaluations at 2, 4, 6; the score is below 0.35 at 6."""
    estimator = scripted(tmp_path, save=2, every=every, shards=shards)
    assert run(estimator, stop_if_lower_hook, "score", 0.35) == 6


def test_a_stop_says_why(tmp_path, fresh, caplog):
    with caplog.at_level(logging.INFO, "jaxspec"):
        run(fresh, stop_if_lower_hook, "score", 0.45)
    assert (
        'Requesting early stopping at global step 1: at step 1, metric "score" has value 0.4, which is less than the '
        "configured threshold (0.45)." in caplog.messages
    )
    estimator = Evaluated(tmp_path / "x", {2: {"score": 1.0}, 5: {"score": 1.0}})
    with caplog.at_level(logging.INFO, "jaxspec"):
        asked(stop_if_no_decrease_hook(estimator, "score", 3, run_every_secs=None, run_every_steps=1), [5])
    assert (
        'Requesting early stopping at global step 5: no decrease in metric "score" for 3 steps, from step 2 to 5.'
        in caplog.messages
    )


def test_equal_is_neither_higher_nor_lower_nor_better(tmp_path):
    # 0.1 is not a number of float32, the precision of event files.
    estimator = Evaluated(tmp_path, {step: {"score": 0.1} for step in (1, 2, 3)})
    steps = {"run_every_secs": None, "run_every_steps": 1}
    assert asked(stop_if_higher_hook(estimator, "score", 0.1, **steps), [1, 2, 3, 4]) is None
    assert asked(stop_if_lower_hook(estimator, "score", 0.1, **steps), [1, 2, 3, 4]) is None
    assert asked(stop_if_no_increase_hook(estimator, "score", 2, **steps), [1, 2, 3, 4]) == 3
    assert asked(stop_if_lower_hook(estimator, "score", 1e300, **steps), [1]) == 1


def test_min_steps_counts_the_step_itself(tmp_path):
    estimator = Evaluated(tmp_path, {1: {"score": 9.0}, 2: {"score": 9.0}})
    hook = stop_if_higher_hook(estimator, "score", 1.0, min_steps=2, run_every_secs=None, run_every_steps=1)
    assert asked(hook, [1, 2, 3]) == 2


def test_a_name_has_a_directory_of_its_own(fresh):
    assert run(fresh, stop_if_lower_hook, "score", 0.28, eval_dir=fresh.eval_dir("dev"), name="dev") == 6


def test_before_the_first_evaluation_it_goes_on(fresh):
    hook = stop_if_lower_hook(fresh, "score", 0.28, run_every_secs=None, run_every_steps=1)
    fresh.train(counting_input(), max_steps=5, hooks=[hook])
    assert last_step(fresh) == 5


def test_a_metric_that_is_not_there(fresh):
    with pytest.raises(KeyError, match=r"have no metric 'nothing'; they have \['loss', 'score'\]. Pass one of these"):
        run(fresh, stop_if_lower_hook, "nothing", 0.28)
    assert checkpoint_steps(fresh.model_dir) == [0, 1]


def test_an_evaluation_that_lacks_the_metric_is_passed_over(tmp_path):
    estimator = Evaluated(tmp_path, {1: {"other": 1.0}, 2: {"score": 0.1}})
    hook = stop_if_lower_hook(estimator, "score", 0.5, run_every_secs=None, run_every_steps=1)
    assert asked(hook, [2]) == 2


# How often.


def test_every_so_many_seconds(tmp_path):
    estimator, seconds = Evaluated(tmp_path, {}), [0.0]
    times = []

    def should_stop():
        times.append(seconds[0])
        return False

    hook = make_early_stopping_hook(estimator, should_stop, clock=lambda: seconds[0])
    hook.after_create_session(view := View(0), None)
    for step in range(1, 200):
        seconds[0], view.global_step = float(step), step
        hook.after_run(js.hooks.SessionRunContext(view, step - 1, step - 1), js.hooks.SessionRunValues(None))
    assert times == [1, 61, 121, 181]


@pytest.mark.parametrize(
    ("start", "ends", "expected"),
    [
        (0, range(1, 11), [1, 5, 9]),
        (6, range(7, 14), [9, 13]),
        (8, range(9, 14), [9, 13]),
        (9, range(10, 14), [13]),
        (0, [3, 5, 8, 10, 20], [3, 5, 10, 20]),
        (5, [8, 10, 20], [10, 20]),
    ],
)
def test_every_so_many_steps_of_the_whole_run(tmp_path, start, ends, expected):
    at = []
    view = View(start)
    hook = make_early_stopping_hook(
        Evaluated(tmp_path, {}), lambda: at.append(view.global_step), run_every_secs=None, run_every_steps=4
    )
    hook.after_create_session(view, None)
    for end in ends:
        context = js.hooks.SessionRunContext(view, view.global_step, end - 1)
        hook.before_run(context)
        view.global_step = end
        hook.after_run(context, js.hooks.SessionRunValues(None))
    assert at == expected


@pytest.mark.parametrize("shards", [1, 4])
def test_a_function_of_the_user(tmp_path, shards):
    estimator = scripted(tmp_path, save=100, shards=shards)
    asked = []

    def should_stop():
        asked.append(1)
        return len(asked) > 3

    hook = make_early_stopping_hook(estimator, should_stop, run_every_secs=None, run_every_steps=2)
    estimator.train(counting_input(), steps=100, hooks=[hook])
    assert (last_step(estimator), len(asked)) == (7, 4)
    assert checkpoint_steps(tmp_path) == [0, 7]
    assert estimator.get_variable_names() == ["global_step", "params/w"]


def test_the_function_is_asked_when_host_call_has_run(tmp_path):
    seen = []

    def model_fn(variables, features, mode, step):
        spec = scripted_model_fn(variables, features, mode)
        return spec._replace(host_call=(lambda step: seen.append(int(step[0])), [step + jnp.zeros(1, jnp.int32)]))

    config = run_config(save=100, every=4, num_shards=1)
    estimator = js.TPUEstimator(model_fn, counting_init, model_dir=tmp_path, config=config, train_batch_size=4)
    counts = []

    def should_stop():
        counts.append(len(seen))
        return len(seen) >= 8

    hook = make_early_stopping_hook(estimator, should_stop, run_every_secs=None, run_every_steps=3)
    estimator.train(counting_input(), steps=100, hooks=[hook])
    assert counts == [1, 4, 7, 10]  # loops of 4 steps end there, too
    assert last_step(estimator) == 10


# Restarts.


@pytest.mark.parametrize(("asked_every", "interrupted_at"), [(1, 3), (4, 7)])
def test_a_restart_decides_as_an_undisturbed_run(fresh, tmp_path, asked_every, interrupted_at):
    kwargs = {"run_every_steps": asked_every}
    undisturbed = run(fresh, stop_if_lower_hook, "score", 0.28, **kwargs)
    assert undisturbed == {1: 6, 4: 9}[asked_every]
    run(scripted(tmp_path), stop_if_lower_hook, "score", 0.28, max_steps=interrupted_at, **kwargs)
    assert run(scripted(tmp_path), stop_if_lower_hook, "score", 0.28, **kwargs) == undisturbed


def test_evaluations_from_after_the_checkpoint_do_not_count(tmp_path):
    """A run that was killed lost its last checkpoints; the event files still hold what it found later."""
    estimator = scripted(tmp_path, shards=4)
    assert run(estimator, stop_if_lower_hook, "score", 0.01) == 11
    assert list(read_eval_metrics(estimator.eval_dir())) == list(range(1, 12))
    for step in range(3, 12):
        shutil.rmtree(checkpoint_path(tmp_path, step))
    assert run(scripted(tmp_path, shards=4), stop_if_lower_hook, "score", 0.28) == 6


def test_a_run_that_has_stopped_makes_no_further_step(fresh):
    def again(estimator, **kwargs):
        return run(estimator, stop_if_no_decrease_hook, "score", 3, **kwargs)

    assert again(fresh) == 4
    assert again(fresh) == again(scripted(fresh.model_dir)) == 4
    assert again(fresh, run_every_secs=60, run_every_steps=None) == 4
    assert checkpoint_steps(fresh.model_dir) == [0, 1, 2, 3, 4]
    # With more patience it goes on.
    assert run(fresh, stop_if_no_decrease_hook, "score", 30, max_steps=6) == 6


def test_an_evaluation_that_the_last_look_did_not_see_does_not_stop_a_resumed_run(tmp_path):
    estimator = Evaluated(tmp_path, {step: {"score": score} for step, score in enumerate(SCORES)})
    # It looks at 1, 5, 9; the score is below 0.28 at 6.
    for start in (6, 7, 8):
        hook = stop_if_lower_hook(estimator, "score", 0.28, run_every_secs=None, run_every_steps=4)
        assert asked(hook, range(start + 1, 12), start) == 9
    hook = stop_if_lower_hook(estimator, "score", 0.28, run_every_secs=None, run_every_steps=4)
    assert asked(hook, range(12, 14), 11) == 11


def test_files_are_read_when_it_looks_and_at_the_start(tmp_path, monkeypatch):
    reads = []
    monkeypatch.setattr(
        "jaxspec._src.hooks.early_stopping_hook.read_scalars", lambda eval_dir, warned: reads.append(eval_dir) or {}
    )
    hook = stop_if_lower_hook(Evaluated(tmp_path, {}), "score", 0.5, clock=lambda: 0.0)
    assert asked(hook, range(6, 20), start=5) is None
    assert reads == [str(tmp_path)] * 2


# What is refused.


def test_read_eval_metrics(tmp_path):
    assert read_eval_metrics(tmp_path / "nothing") == {}
    Evaluated(tmp_path, {5: {"loss": 2.0, "score": 0.5}, 3: {"loss": 1.0}})
    metrics = read_eval_metrics(tmp_path)
    assert metrics == {3: {"loss": 1.0}, 5: {"loss": 2.0, "score": 0.5}}
    assert list(metrics) == [3, 5]


def make_custom(estimator, **kwargs):
    return make_early_stopping_hook(estimator, lambda: False, **kwargs)


def make_threshold(estimator, **kwargs):
    return stop_if_higher_hook(estimator, "loss", 1.0, **kwargs)


def make_patience(estimator, **kwargs):
    return stop_if_no_decrease_hook(estimator, "loss", 10, **kwargs)


@pytest.mark.parametrize("make", [make_custom, make_threshold, make_patience])
def test_bad_arguments(tmp_path, make):
    estimator = Evaluated(tmp_path, {})
    message = "Only one of `run_every_secs` and `run_every_steps` must be set. Got 60 seconds and 1 steps; .* run_every_secs=None"
    with pytest.raises(ValueError, match=message):
        make(estimator, run_every_steps=1)
    with pytest.raises(ValueError, match="Either every_secs or every_steps should be provided"):
        make(estimator, run_every_secs=None)
    with pytest.raises(ValueError, match="run_every_steps should be > 0, got 0. 1 looks after every loop"):
        make(estimator, run_every_secs=None, run_every_steps=0)
    for wrong in (3, js.TPUEstimator):
        with pytest.raises(TypeError, match=rf"`estimator` must have type `jaxspec.TPUEstimator`. Got: {type(wrong)}"):
            make(wrong)


def test_bad_functions(tmp_path):
    estimator = Evaluated(tmp_path, {})
    with pytest.raises(
        TypeError, match="should_stop_fn must be callable, given: 3. Write a function without arguments"
    ):
        make_early_stopping_hook(estimator, 3)
    with pytest.raises(TypeError, match=r"is called without arguments: missing a required argument: 'step'. Bind them"):
        make_early_stopping_hook(estimator, lambda step: True)


def test_the_default_directory_is_that_of_the_estimator(tmp_path):
    estimator = scripted(tmp_path)
    Evaluated(estimator.eval_dir(), {1: {"score": 0.1}})
    hook = stop_if_lower_hook(estimator, "score", 0.5, run_every_secs=None, run_every_steps=1)
    assert asked(hook, [1, 2]) == 1


def test_with_long_loops_a_run_that_has_stopped_makes_no_further_step(tmp_path):
    def again():
        estimator = js.TPUEstimator(
            scripted_model_fn,
            counting_init,
            model_dir=tmp_path,
            config=run_config(save=7, every=7, num_shards=1),
            train_batch_size=4,
            eval_batch_size=4,
        )
        hook = stop_if_lower_hook(estimator, "score", 0.28, run_every_secs=None, run_every_steps=4)
        js.train_and_evaluate(
            estimator,
            TrainSpec(counting_input(), max_steps=11, hooks=[hook]),
            EvalSpec(counting_input(1), throttle_secs=0),
        )
        return last_step(estimator)

    # Evaluated at 7, where the score is low enough; asked at 1, 5 and 9.
    assert [again(), again(), again()] == [9, 9, 9]


def test_a_damaged_event_file_is_told_of_once_and_training_goes_on(tmp_path, caplog):
    estimator = js.TPUEstimator(
        counting_model_fn,
        counting_init,
        model_dir=tmp_path,
        config=run_config(num_shards=1),
        train_batch_size=4,
        eval_batch_size=4,
    )
    estimator.evaluate(counting_input(2))
    damaged = tmp_path / "eval" / "events.out.tfevents.0"
    data = b"\xff\xff no event"
    header = struct.pack("<Q", len(data))
    checksums = [struct.pack("<I", masked_crc32c(part)) for part in (header, data)]
    damaged.write_bytes(header + checksums[0] + data + checksums[1])
    hook = stop_if_lower_hook(estimator, "loss", 0.0, run_every_secs=None, run_every_steps=1)
    estimator.train(counting_input(), steps=5, hooks=[hook])
    assert estimator.get_variable_value("params/w") == 5
    assert [str(damaged) in record.getMessage() for record in caplog.records].count(True) == 1
