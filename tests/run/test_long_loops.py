"""A long loop keeps nothing waiting: dispatches are short, and what is due by the clock ends the loop."""

import threading
import time

import jax
import numpy as np
import pytest
from tiny_models import (
    assert_trees_equal,
    batches,
    counting_init,
    counting_input,
    counting_model_fn,
    data,
    linear_init,
    linear_model_fn,
)

import jaxspec as js
from jaxspec._src.run import dispatch_length
from jaxspec._src.run.dispatch_length import DispatchLength
from jaxspec.hooks import CheckpointSaverListener, SessionRunHook


def config(**kwargs):
    return js.RunConfig(js.TPUConfig(iterations_per_loop=10_000, num_shards=1), **kwargs)


def counting(model_dir, **kwargs):
    return js.TPUEstimator(
        counting_model_fn, counting_init, model_dir=model_dir, config=config(**kwargs), train_batch_size=4
    )


class Saves(CheckpointSaverListener):
    """Remembers which checkpoints were whole."""

    def __init__(self):
        self.steps = []

    def after_save(self, session, global_step):
        self.steps.append(global_step)


class Loops(SessionRunHook):
    def __init__(self):
        self.loops = []

    def after_run(self, run_context, run_values):
        self.loops.append((run_context.first_step, run_context.last_step))


def slow_input(seconds):
    def input_fn():
        for batch in counting_input()():
            time.sleep(seconds)
            yield batch

    return input_fn


def test_a_checkpoint_that_is_due_by_seconds_does_not_wait_for_a_long_loop(tmp_path):
    saves, loops = Saves(), Loops()
    counting(tmp_path, save_checkpoints_secs=0.2).train(
        slow_input(0.02), steps=200, saving_listeners=[saves], hooks=[loops]
    )
    assert saves.steps[0] == 0
    assert saves.steps[-1] == 200
    # 200 batches take 4 s. The first checkpoints come with the compilation, and a busy machine takes its time over
    # each.
    assert 5 <= len(saves.steps) <= 22
    # Loops follow one another without a gap, and end where there is a checkpoint.
    assert [first for first, _ in loops.loops[1:]] == [last + 1 for _, last in loops.loops[:-1]]
    assert [last + 1 for _, last in loops.loops] == saves.steps[1:]


def test_a_checkpoint_that_is_due_does_not_wait_for_the_input(tmp_path):
    saved = threading.Event()

    class Saved(Saves):
        def after_save(self, session, global_step):
            super().after_save(session, global_step)
            if global_step == 7:
                saved.set()

    def stuck():
        for i, batch in enumerate(counting_input()()):
            if i == 7:
                assert saved.wait(60)
            yield batch

    saves = Saved()
    counting(tmp_path, save_checkpoints_secs=0.3).train(stuck, steps=8, saving_listeners=[saves])
    assert saves.steps[-2:] == [7, 8]


def test_without_a_due_checkpoint_a_long_loop_is_one_loop(tmp_path):
    loops = Loops()
    counting(tmp_path, save_checkpoints_secs=600).train(slow_input(0.001), steps=300, hooks=[loops])
    assert loops.loops == [(0, 299)]


def test_a_hook_may_end_a_loop_by_the_clock(tmp_path):
    class Wants(Loops):
        def wants_loop_end(self, global_step):
            return global_step % 25 == 0

    wants = Wants()
    counting(tmp_path, save_checkpoints_secs=None).train(slow_input(0.002), steps=200, hooks=[wants])
    ends = [last + 1 for _, last in wants.loops]
    assert ends[-1] == 200
    assert all(end % 25 == 0 for end in ends)


# The length of a dispatch.


class FakeTime:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_dispatch_starts_with_one_step_and_follows_the_least_upper_bound_that_is_known():
    clock = FakeTime()
    length = DispatchLength(clock, seconds=1.0)
    assert length.most == 1

    def dispatch(steps, seconds):
        began, clock.now = clock.now, clock.now + seconds
        length.done(steps, began)

    dispatch(1, 10.0)  # compiles
    assert length.most == 1
    dispatch(1, 0.125)
    assert length.most == 8
    dispatch(8, 60.0)  # the host was busy elsewhere
    assert length.most == 8
    dispatch(8, 0.25)
    assert length.most == 32
    for _ in range(3):  # the steps have become slow
        dispatch(2, 1.0)
    assert length.most == 2


@pytest.fixture
def dispatches(monkeypatch):
    """The numbers of steps that were dispatched at once."""
    from jaxspec._src.device.program import Program as loop

    seen, call = [], loop.__call__

    def spy(self, state, batches, start, count):
        seen.append(count)
        return call(self, state, batches, start, count)

    monkeypatch.setattr(loop, "__call__", spy)
    return seen


def slow_model_fn(variables, features, labels, mode):
    """The linear model, each step of which takes some 30 ms."""

    def wait(x):
        time.sleep(0.03)
        return x

    features = jax.pure_callback(wait, jax.ShapeDtypeStruct(features.shape, features.dtype), features)
    return linear_model_fn(variables, features, labels, mode)


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_a_dispatch_is_short_however_long_the_loop_is(tmp_path, dispatches, verb):
    x, y = data(rows=4 * 60)
    estimator = js.TPUEstimator(
        slow_model_fn,
        linear_init,
        model_dir=tmp_path,
        config=config(save_checkpoints_secs=None),
        train_batch_size=4,
        eval_batch_size=4,
    )
    getattr(estimator, verb)(lambda: iter(batches(x, y, size=4)))
    assert sum(dispatches) == 60
    # A second holds 33 such steps; a stack has all of them.
    assert max(dispatches) <= round(dispatch_length.DISPATCH_SECS / 0.03)


def test_results_do_not_depend_on_the_length_of_dispatches(tmp_path, monkeypatch):
    x, y = data(rows=4 * 40)

    def train(name, seconds):
        monkeypatch.setattr(dispatch_length.DispatchLength.__init__, "__defaults__", (time.monotonic, seconds))
        estimator = js.TPUEstimator(
            linear_model_fn,
            linear_init,
            model_dir=tmp_path / name,
            config=config(save_checkpoints_secs=None),
            train_batch_size=4,
            eval_batch_size=4,
        )
        estimator.train(lambda: iter(batches(x, y, size=4)))
        result = estimator.evaluate(lambda: iter(batches(x, y, size=4)))
        return {name: estimator.get_variable_value(name) for name in estimator.get_variable_names()}, result

    (short, short_result), (long, long_result) = train("short", 0.0), train("long", 1e9)
    assert_trees_equal(short, long)
    np.testing.assert_equal(short_result, long_result)
