"""TPUEstimator.train: steps, loops, checkpoints, resuming, stopping."""

import functools
import logging
import os
import re
import shutil
import signal
import threading

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from insides import live_state, programs, state_on_host
from tiny_models import (
    Net,
    assert_same_on_all_devices,
    assert_trees_equal,
    counting_init,
    counting_input,
    counting_model_fn,
    data,
    net_model_fn,
    run_config,
)

import jaxspec as js
from jaxspec._src.run.loop_length import LoopLength
from jaxspec.checkpoint import checkpoint_steps

X, Y = data(rows=96)


def counting(model_dir=None, **kwargs):
    config = kwargs.pop("config", None) or run_config(
        save=kwargs.pop("save", 1000), every=kwargs.pop("every", 4), **kwargs.pop("run", {})
    )
    kwargs.setdefault("train_batch_size", 4)
    kwargs.setdefault("eval_batch_size", 4)
    kwargs.setdefault("predict_batch_size", 4)
    return js.TPUEstimator(counting_model_fn, counting_init, model_dir=model_dir, config=config, **kwargs)


def value(estimator, name="params/w"):
    return float(estimator.get_variable_value(name))


def test_steps_add_and_max_steps_is_absolute(tmp_path):
    estimator = counting(tmp_path)
    assert estimator.train(counting_input(), steps=5) is estimator
    estimator.train(counting_input(), steps=5)
    assert value(estimator) == 10
    estimator.train(counting_input(), max_steps=12)
    assert (value(estimator), estimator.get_variable_value("global_step")) == (12, 12)


def test_a_finished_run_returns_at_once(tmp_path, caplog):
    counting(tmp_path).train(counting_input(), max_steps=3)

    def input_fn():
        raise AssertionError("called")

    with caplog.at_level("INFO", "jaxspec"):
        counting(tmp_path).train(input_fn, max_steps=3)
    assert "Skipping training since max_steps has already saved." in caplog.text


def test_checkpoints_fall_exactly_on_their_steps(tmp_path):
    estimator = counting(tmp_path, save=4, every=7, run={"keep_checkpoint_max": None})
    estimator.train(counting_input(), steps=10)
    assert checkpoint_steps(tmp_path) == [0, 4, 8, 10]
    counting(tmp_path, save=4, every=7, run={"keep_checkpoint_max": None}).train(counting_input(), max_steps=15)
    assert checkpoint_steps(tmp_path) == [0, 4, 8, 10, 14, 15]


def test_checkpoints_by_time(tmp_path):
    config = js.RunConfig(js.TPUConfig(iterations_per_loop=1), save_checkpoints_secs=300, keep_checkpoint_max=None)
    estimator = counting(tmp_path, config=config)
    estimator.train(counting_input(), steps=2)
    assert checkpoint_steps(tmp_path) == [0, 2]
    seconds = [0]

    class OneSecond(js.hooks.SessionRunHook):
        def before_run(self, run_context):
            seconds[0] += 1

    saver = js.hooks.CheckpointSaverHook(tmp_path, save_secs=3, clock=lambda: seconds[0])
    estimator.train(counting_input(), steps=7, hooks=[saver, OneSecond()])
    assert checkpoint_steps(tmp_path) == [0, 2, 5, 8, 9]


def test_the_newest_are_kept(tmp_path):
    counting(tmp_path, save=2, run={"keep_checkpoint_max": 2}).train(counting_input(), steps=9)
    assert checkpoint_steps(tmp_path) == [8, 9]
    assert not [name for name in os.listdir(tmp_path) if "tmp" in name or "removed" in name]


def test_without_checkpoints_the_live_state_goes_on(tmp_path):
    estimator = counting(tmp_path, save=None)
    estimator.train(counting_input(), steps=2).train(counting_input(), steps=3)
    assert estimator.latest_checkpoint() is None
    assert estimator.evaluate(counting_input(1))["global_step"] == 5
    assert value(estimator) == 5
    assert estimator.get_variable_names() == ["global_step", "params/w"]
    with pytest.raises(ValueError, match="Could not find trained model in model_dir"):
        counting(tmp_path).get_variable_names()


def test_the_end_of_the_input_ends_training_with_a_checkpoint(tmp_path):
    estimator = counting(tmp_path)
    estimator.train(counting_input(6), steps=10)
    assert checkpoint_steps(tmp_path) == [0, 6]


def test_cpu_fallback_takes_a_short_last_batch(tmp_path):
    def input_fn():
        yield from [{"x": np.full(4, 1, np.float32)}, {"x": np.full(2, 5, np.float32)}]

    estimator = counting(tmp_path, use_tpu=False, train_batch_size=None)
    estimator.train(input_fn)
    assert value(estimator) == 2


def test_loop_length():
    length = LoopLength(4, None)
    assert length.next(0, stop=10, due=None) == 4
    assert length.next(8, stop=10, due=None) == 2
    assert length.next(4, stop=None, due=6) == 2


def test_a_loop_may_be_a_time():
    length = LoopLength(None, 10)
    assert length.iterations == 1
    length.took(1, 30)  # it compiled
    assert length.iterations == 1
    length.took(1, 0.5)
    assert length.iterations == 20
    assert LoopLength(7, None).iterations == 7


def net(model_dir, shards=None, save=1000, every=7, **kwargs):
    return js.TPUEstimator(
        net_model_fn,
        Net(),
        model_dir=model_dir,
        params={},
        train_batch_size=16,
        eval_batch_size=16,
        config=run_config(save=save, every=every, num_shards=shards),
        **kwargs,
    )


@pytest.mark.parametrize(
    "shards", [pytest.param(1, marks=pytest.mark.slow(reason="as with four shards, which are always run")), 4]
)
def test_promise_1_bitwise_for_every_loop_length(tmp_path, shards):
    """Adam, dropout, batch norm; a checkpoint that falls inside a loop.

    Slow: loops of five lengths are five programs, each compiled.
    """
    input_fn = js.inputs.numpy_input_fn(X, Y, num_epochs=None, shuffle=True)
    states = {}
    for every, save in ((1, None), (2, 5), (7, 5), (50, None), (1000, 13)):
        estimator = net(tmp_path / f"{every}", shards, save, every)
        estimator.train(input_fn, steps=30)
        states[every] = state_on_host(estimator)
    for every in states:
        assert_trees_equal(states[every], states[1])


def test_promise_1_with_a_convolution_which_runs_outside_a_loop_on_a_cpu(tmp_path):
    class Conv(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.relu(nn.Conv(2, (3,))(x[..., None])).reshape(len(x), -1))

    def model_fn(variables, features, labels, mode):
        loss = optax.softmax_cross_entropy_with_integer_labels(Conv().apply(variables, features), labels).mean()
        return js.TPUEstimatorSpec(mode, loss=loss, train_op=optax.adam(1e-2))

    states = []
    for every in (1, 7, 50):
        config = run_config(every=every, num_shards=2)
        estimator = js.TPUEstimator(
            model_fn, Conv(), model_dir=tmp_path / f"{every}", train_batch_size=16, config=config
        )
        estimator.train(js.inputs.numpy_input_fn(X, Y, num_epochs=None), steps=9)
        (program,) = programs(estimator)
        assert program.single_step
        states.append(state_on_host(estimator))
    for state in states[1:]:
        assert_trees_equal(state, states[0])


def test_promise_2_and_6_one_state_and_an_exact_resume(tmp_path):
    input_fn = js.inputs.numpy_input_fn(X, Y, num_epochs=None, shuffle=True)
    undisturbed = net(tmp_path / "a").train(input_fn, max_steps=20)
    net(tmp_path / "b").train(input_fn, max_steps=10)
    resumed = net(tmp_path / "b")
    with pytest.raises(RuntimeError, match="stop here"):
        resumed.train(_failing(input_fn, 1), max_steps=20)
    assert_same_on_all_devices(live_state(resumed), 4)
    fresh = net(tmp_path / "b").train(input_fn, max_steps=20)
    assert_trees_equal(state_on_host(undisturbed), state_on_host(fresh))
    assert_same_on_all_devices(live_state(fresh), 4)


def _failing(input_fn, after):
    def failing(params, mode):
        for i, batch in enumerate(input_fn(params, mode)):
            if i == after:
                raise RuntimeError("stop here")
            yield batch

    return failing


def test_killed_at_any_moment_and_started_again(tmp_path):
    """The position in the checkpoint is that of the last batch consumed, whatever was prefetched."""
    input_fn = js.inputs.numpy_input_fn(X, Y, num_epochs=None, shuffle=True)
    undisturbed = net(tmp_path / "a", save=5).train(input_fn, max_steps=17)
    estimator = net(tmp_path / "b", save=5)
    estimator.train(input_fn, max_steps=12)
    shutil.rmtree(tmp_path / "b" / "model.ckpt-12")  # as if killed after 10
    again = net(tmp_path / "b", save=5).train(input_fn, max_steps=17)
    assert_trees_equal(state_on_host(undisturbed), state_on_host(again))


def test_a_second_call_goes_on_with_its_input_if_that_reports_its_position(tmp_path):
    """As after a restart; an input that does not report it begins again, as in TensorFlow."""
    seen = []

    def model_fn(variables, features, mode):
        spec = counting_model_fn(variables, features, mode)
        return spec._replace(host_call=(lambda x: seen.append(float(x[0])), [features["x"]]))

    x = np.arange(32, dtype=np.float32)
    input_fn = js.inputs.numpy_input_fn({"x": x}, num_epochs=None)
    estimator = js.TPUEstimator(
        model_fn, counting_init, model_dir=tmp_path, train_batch_size=4, config=run_config(save=100)
    )
    estimator.train(input_fn, steps=2).train(input_fn, steps=2)
    assert seen == [0, 4, 8, 12]
    estimator.train(lambda: iter([{"x": x[:4]}, {"x": x[4:8]}])).train(lambda: iter([{"x": x[:4]}]))
    assert seen[4:] == [0, 4, 0]


def test_many_short_calls_equal_one_long_one_even_when_killed_between(tmp_path):
    input_fn = js.inputs.numpy_input_fn(X, Y, num_epochs=None, shuffle=True)
    straight = net(tmp_path / "a").train(input_fn, max_steps=15)
    short = net(tmp_path / "b").train(input_fn, max_steps=5).train(input_fn, max_steps=10)
    assert_trees_equal(state_on_host(short.train(input_fn, max_steps=15)), state_on_host(straight))
    killed = net(tmp_path / "c").train(input_fn, max_steps=5)
    killed = net(tmp_path / "c").train(input_fn, max_steps=10).train(input_fn, max_steps=15)
    assert_trees_equal(state_on_host(killed), state_on_host(straight))


def test_a_finished_input_begins_again_in_a_new_run(tmp_path):
    input_fn = js.inputs.numpy_input_fn({"x": np.zeros(12, np.float32)})
    for steps in (3, 6):
        estimator = counting(tmp_path).train(input_fn, steps=10)
        assert value(estimator) == steps


def test_any_number_of_steps_uses_one_compiled_program(tmp_path):
    traces = []

    def model_fn(variables, features, mode):
        traces.append(mode)
        return counting_model_fn(variables, features, mode)

    estimator = js.TPUEstimator(
        model_fn, counting_init, model_dir=tmp_path, train_batch_size=4, config=run_config(save=None, every=5)
    )
    estimator.train(counting_input(), steps=1)
    first = list(traces)
    compiled = _count_compiles(lambda: estimator.train(counting_input(), steps=13).train(counting_input(), steps=5))
    assert traces == first
    assert compiled == 0
    assert len(first) == 2  # the optimizer's state, and the loop


def _count_compiles(run):
    records = []

    class Handler(logging.Handler):
        def emit(self, record):
            if "Finished XLA compilation" in record.getMessage():
                records.append(record.getMessage())

    logger, handler = logging.getLogger("jax._src.dispatch"), Handler()
    logger.addHandler(handler)
    try:
        with jax.log_compiles():
            run()
    finally:
        logger.removeHandler(handler)
    return len(records)


def test_the_compile_counter_counts():
    assert _count_compiles(lambda: jax.jit(lambda x: x * 3 + 1)(jnp.ones(7))) > 0


# host_call, in order


@pytest.mark.parametrize("every", [1, 4, 7])
@pytest.mark.parametrize("shards", [1, 4])
def test_host_call_once_per_step_in_order_with_the_whole_batch(tmp_path, every, shards):
    calls = []

    def model_fn(variables, features, mode, step):
        spec = counting_model_fn(variables, features, mode)
        return spec._replace(
            host_call=(lambda step, x: calls.append((step.tolist(), x.tolist())), [step, features["x"]])
        )

    estimator = js.TPUEstimator(
        model_fn,
        counting_init,
        model_dir=tmp_path,
        train_batch_size=4,
        config=run_config(save=5, every=every, num_shards=shards),
    )
    estimator.train(counting_input(), steps=9)
    assert calls == [([i] * shards, [i] * 4) for i in range(9)]


def test_host_call_every_n_goes_by_the_global_step(tmp_path):
    calls = []

    def model_fn(variables, features, mode, step):
        spec = counting_model_fn(variables, features, mode)
        return spec._replace(host_call=(lambda s: calls.append(int(s[0])), [step]))

    config = run_config(save=5, every=4, experimental_host_call_every_n_steps=3)
    for max_steps in (5, 11):
        js.TPUEstimator(model_fn, counting_init, model_dir=tmp_path, train_batch_size=4, config=config).train(
            counting_input(), max_steps=max_steps
        )
    assert calls == [0, 3, 6, 9]
    never = run_config(every=4, experimental_host_call_every_n_steps=0)
    js.TPUEstimator(model_fn, counting_init, train_batch_size=4, config=never).train(counting_input(), steps=2)
    assert len(calls) == 4


# what stops a run


def test_nan_stops_the_run_and_the_newest_checkpoint_is_from_before_it(tmp_path):
    def model_fn(variables, features, mode):
        w = variables["params"]["w"]
        loss = jnp.where(w >= 13, jnp.nan, w) + 0 * features["x"].mean()
        return js.TPUEstimatorSpec(mode, loss=loss, train_op=js.minimize(optax.sgd(1.0), lambda v: -v["params"]["w"]))

    config = run_config(save=5, every=20)
    estimator = js.TPUEstimator(model_fn, counting_init, model_dir=tmp_path, train_batch_size=4, config=config)
    with pytest.raises(js.hooks.NanLossDuringTrainingError, match="at step 13 "):
        estimator.train(counting_input(), steps=40)
    assert checkpoint_steps(tmp_path) == [0, 5, 10]
    with pytest.raises(js.hooks.NanLossDuringTrainingError, match="at step 13 "):
        estimator.train(counting_input(), steps=40)


def test_nan_before_an_error_in_the_input_is_not_saved_by_the_next_call(tmp_path):
    calls = []

    def model_fn(variables, features, mode, step):
        w = variables["params"]["w"]
        loss = jnp.where(features["x"][0] == 4, jnp.nan, w)
        return js.TPUEstimatorSpec(
            mode,
            loss=loss,
            train_op=js.minimize(optax.sgd(1.0), lambda v: -v["params"]["w"]),
            host_call=(lambda s: calls.append(int(s[0])), [step]),
        )

    def input_fn(stop):
        yield from counting_input(stop)()
        raise OSError("disk")

    config = run_config(save=100, every=20)
    estimator = js.TPUEstimator(model_fn, counting_init, model_dir=tmp_path, train_batch_size=4, config=config)
    with pytest.raises(OSError, match="disk"):
        estimator.train(functools.partial(input_fn, stop=3), steps=40)
    assert calls == [0, 1, 2]
    with pytest.raises(OSError, match="disk") as caught:
        estimator.train(functools.partial(input_fn, stop=5), steps=40)
    assert "NaN loss during training: at step 7 " in caught.value.__notes__[-1]
    assert checkpoint_steps(tmp_path) == [0, 3]


def test_a_state_that_was_lost_takes_the_position_of_its_input_with_it(tmp_path):
    def model_fn(variables, features, labels, mode):
        w = variables["params"]["w"]
        loss = jnp.where(features["x"][0] == 4, jnp.nan, w * 0 + features["x"].mean())
        return js.TPUEstimatorSpec(
            mode,
            loss=loss,
            train_op=js.minimize(optax.sgd(0.0)),
            host_call=(lambda x: seen.append(float(x[0])), [features["x"]]),
        )

    seen = []
    input_fn = js.inputs.numpy_input_fn({"x": np.arange(6, dtype=np.float32)}, num_epochs=None)
    config = js.RunConfig(save_checkpoints_steps=None, save_checkpoints_secs=None, tf_random_seed=0)
    estimator = js.TPUEstimator(
        model_fn,
        lambda: {"params": {"w": jnp.zeros(())}},
        model_dir=tmp_path,
        config=config,
        use_tpu=False,
        train_batch_size=1,
    )
    with pytest.raises(js.hooks.NanLossDuringTrainingError):
        estimator.train(input_fn, max_steps=6)
    seen.clear()
    estimator.train(input_fn, max_steps=3)
    assert seen == [0, 1, 2]


def test_infinities_outside_params_are_saved_but_no_nan(tmp_path):
    def model_fn(variables, features, mode):
        spec = counting_model_fn(variables, features, mode)
        best = jnp.where(features["x"].mean() == 2, jnp.nan, variables["stats"]["best"])
        return spec._replace(
            train_op=js.minimize(optax.sgd(1.0), lambda v: -v["params"]["w"], updates={"stats": {"best": best}})
        )

    def init_fn():
        return {**counting_init(), "stats": {"best": jnp.float32(np.inf)}}

    estimator = js.TPUEstimator(
        model_fn, init_fn, model_dir=tmp_path, train_batch_size=4, config=run_config(save=2, every=2)
    )
    with pytest.raises(js.hooks.NanLossDuringTrainingError, match="After step 3 .*not finite: stats/best"):
        estimator.train(counting_input(), steps=8)
    assert checkpoint_steps(tmp_path) == [0, 2]


def test_non_finite_weights_are_not_saved(tmp_path):
    def model_fn(variables, features, mode):
        return js.TPUEstimatorSpec(
            mode, loss=features["x"].mean(), train_op=js.minimize(optax.sgd(1.0), lambda v: v["params"]["w"] * jnp.inf)
        )

    estimator = js.TPUEstimator(
        model_fn, counting_init, model_dir=tmp_path, train_batch_size=4, config=run_config(save=3)
    )
    with pytest.raises(js.hooks.NanLossDuringTrainingError, match="After step 2 .*not finite: params/w"):
        estimator.train(counting_input(), steps=5)
    assert checkpoint_steps(tmp_path) == [0]


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("jaxspec")]


class Mine(Exception):
    pass


def failing_host_call(step):
    def model_fn(variables, features, mode):
        def host_call(x):
            if x[0] == step:
                raise Mine("boom")

        return counting_model_fn(variables, features, mode)._replace(host_call=(host_call, [features["x"]]))

    return model_fn


@pytest.mark.parametrize("where", ["input_fn", "host_call", "calling input_fn", "model_fn"])
def test_errors_are_the_users_own_and_leave_nothing_behind(tmp_path, where):
    def input_fn():
        if where == "calling input_fn":
            raise Mine("boom")
        for i, batch in zip(range(100), counting_input()(), strict=False):
            if i == 6 and where == "input_fn":
                raise Mine("boom")
            yield batch

    def calling(**_):
        raise Mine("boom")

    def broken(features, mode):
        raise Mine("boom")

    model_fn = {"host_call": failing_host_call(6), "model_fn": broken}.get(where, counting_model_fn)
    estimator = js.TPUEstimator(
        model_fn, counting_init, model_dir=tmp_path, train_batch_size=4, config=run_config(save=4, every=3)
    )
    with pytest.raises(Mine, match="boom") as caught:
        estimator.train(calling if where == "calling input_fn" else input_fn, steps=10)
    notes = " ".join(getattr(caught.value, "__notes__", []))
    expected = {
        "input_fn": "raised by input_fn at batch 6",
        "host_call": "raised by host_call .*at global step 6",
        "calling input_fn": "raised by input_fn",
        "model_fn": "",
    }[where]
    assert re.search(expected, notes)
    assert threads() == []
    assert checkpoint_steps(tmp_path) == ([0, 4] if where in ("input_fn", "host_call") else [])
    if where == "input_fn":
        estimator.train(counting_input(), max_steps=9)  # from the live state
        assert value(estimator) == 9


@pytest.fixture
def hears_ctrl_c():
    """A shell that starts a process in the background makes it ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_between_two_loops_saves_and_training_goes_on(tmp_path, hears_ctrl_c):
    def model_fn(variables, features, mode):
        def host_call(x):
            if x[0] == 5:
                os.kill(os.getpid(), signal.SIGINT)

        return counting_model_fn(variables, features, mode)._replace(host_call=(host_call, [features["x"]]))

    class KeepsHostCallsInStep(js.hooks.SessionRunHook):
        def after_run(self, run_context, run_values):
            """Called when host_call has run for the loop; without it training runs ahead of the interrupt."""

    estimator = js.TPUEstimator(
        model_fn, counting_init, model_dir=tmp_path, train_batch_size=4, config=run_config(save=100, every=2)
    )
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        estimator.train(counting_input(), steps=50, hooks=[KeepsHostCallsInStep()])
    assert signal.getsignal(signal.SIGINT) is before
    stopped = checkpoint_steps(tmp_path)[-1]
    assert 6 <= stopped <= 10
    assert threads() == []
    estimator.train(counting_input(5), steps=3)
    assert value(estimator) == stopped + 3


def test_keyboard_interrupt_raised_by_the_users_code_saves_too(tmp_path):
    def input_fn():
        yield from counting_input(5)()
        raise KeyboardInterrupt

    estimator = counting(tmp_path, every=2)
    with pytest.raises(KeyboardInterrupt):
        estimator.train(input_fn, steps=50)
    assert checkpoint_steps(tmp_path) == [0, 5]
    estimator.train(counting_input(), steps=1)
    assert value(estimator) == 6


def test_sigterm_saves_and_then_acts(tmp_path):
    caught = []
    before = signal.signal(signal.SIGTERM, lambda *_: caught.append(1))
    try:

        def input_fn():
            for i, batch in enumerate(counting_input()()):
                if i == 5:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

        counting(tmp_path, every=2).train(input_fn, steps=200)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught == [1]
    assert checkpoint_steps(tmp_path)[-1] < 200


def test_ctrl_c_while_the_input_keeps_waiting(tmp_path, hears_ctrl_c):
    release = threading.Event()

    def input_fn():
        yield from counting_input(2)()
        release.wait(60)

    def model_fn(variables, features, mode):
        def host_call(x):
            if x[0] == 1:
                threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
                threading.Timer(2, release.set).start()  # a generator cannot be interrupted from outside

        return counting_model_fn(variables, features, mode)._replace(host_call=(host_call, [features["x"]]))

    estimator = js.TPUEstimator(
        model_fn, counting_init, model_dir=tmp_path, train_batch_size=4, config=run_config(save=100, every=1)
    )
    with pytest.raises(KeyboardInterrupt):
        estimator.train(input_fn, steps=50)
    assert checkpoint_steps(tmp_path) == [0, 2]


def test_an_ignored_signal_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:

        def input_fn():
            for i, batch in enumerate(counting_input(20)()):
                if i == 5:
                    os.kill(os.getpid(), signal.SIGINT)
                yield batch

        estimator = counting(tmp_path, every=2).train(input_fn)
    finally:
        signal.signal(signal.SIGINT, before)
    assert value(estimator) == 20


def test_no_train_inside_train(tmp_path):
    estimator = None

    def input_fn():
        estimator.train(counting_input(), steps=1)
        yield

    estimator = counting(tmp_path)
    with pytest.raises(RuntimeError, match="train was called while this estimator is training"):
        estimator.train(input_fn, steps=1)


# the model_dir


def test_a_model_dir_of_another_model_names_the_leaves(tmp_path):
    counting(tmp_path).train(counting_input(), steps=1)

    def other():
        return {"params": {"w": jnp.zeros(3), "v": jnp.zeros(2)}}

    estimator = js.TPUEstimator(
        lambda variables, features, mode: js.TPUEstimatorSpec(
            mode, loss=variables["params"]["w"].sum() + features["x"].mean(), train_op=optax.adam(0.1)
        ),
        other,
        model_dir=tmp_path,
        train_batch_size=4,
    )
    text = (
        r"model.ckpt-1 is of another model: params/v is not in the checkpoint; params/w is float32\[\] in the checkpoint, "
        r"float32\[3\] in the model; opt_state/0/count is not in the checkpoint.*Use another model_dir"
    )
    with pytest.raises(ValueError, match=text):
        estimator.train(counting_input(), steps=1)
    assert checkpoint_steps(tmp_path) == [0, 1]


def test_a_newer_checkpoint_wins_over_the_live_state(tmp_path, caplog):
    estimator = counting(tmp_path).train(counting_input(), steps=2)
    counting(tmp_path).train(counting_input(), max_steps=7)
    with caplog.at_level("INFO", "jaxspec"):
        assert estimator.evaluate(counting_input(1))["global_step"] == 7
    assert caplog.text.count("newer than the state in memory") == 1
    estimator.train(counting_input(), steps=1)
    assert value(estimator) == 8


def test_a_cleared_model_dir_wins_over_the_live_state(tmp_path, caplog):
    estimator = counting(tmp_path).train(counting_input(), steps=2)
    shutil.rmtree(tmp_path)
    with caplog.at_level("INFO", "jaxspec"):
        estimator.train(counting_input(), steps=3)
    assert "was cleared" in caplog.text
    assert value(estimator) == 3


def test_names_and_values(tmp_path):
    estimator = net(tmp_path).train(js.inputs.numpy_input_fn(X, Y), steps=2)
    names = estimator.get_variable_names()
    assert names == sorted(names)
    assert {"params/Dense_0/kernel", "batch_stats/BatchNorm_0/mean", "global_step", "opt_state/0/count"} <= set(names)
    np.testing.assert_array_equal(
        estimator.get_variable_value("params/Dense_0/kernel"),
        live_state(estimator).variables["params"]["Dense_0"]["kernel"],
    )
    assert estimator.get_variable_value("opt_state/0/count") == 2
    with pytest.raises(ValueError, match="'w' is not a variable; the names are"):
        estimator.get_variable_value("w")
    assert estimator.latest_checkpoint() == str(tmp_path / "model.ckpt-2")
    assert js.load_global_step(tmp_path) == 2


def test_keys_in_the_variables_and_a_bare_array_as_optimizer_state_are_restored(tmp_path):
    counter = optax.GradientTransformation(lambda p: jnp.zeros(()), lambda g, s, p=None: (g, s + 1))

    def model_fn(variables, features, mode):
        key = jax.random.fold_in(variables["rng"]["key"], 1)
        return js.TPUEstimatorSpec(
            mode,
            loss=features["x"].mean() * variables["params"]["w"],
            train_op=js.minimize(counter, updates={"rng": {"key": key}}),
        )

    def init_fn(rng):
        return {**counting_init(), "rng": {"key": rng}}

    def make():
        return js.TPUEstimator(model_fn, init_fn, model_dir=tmp_path, train_batch_size=4, config=run_config(save=9))

    first = make().train(counting_input(), steps=2)
    assert value(first, "opt_state/value") == 2
    second = make().train(counting_input(), steps=2)
    straight = js.TPUEstimator(model_fn, init_fn, train_batch_size=4, config=run_config()).train(
        counting_input(), steps=4
    )
    for name in ("opt_state/value", "rng/key"):
        np.testing.assert_array_equal(second.get_variable_value(name), straight.get_variable_value(name))
    os.rename(tmp_path, tmp_path.with_name("moved"))
    moved = js.TPUEstimator(model_fn, init_fn, model_dir=tmp_path.with_name("moved"), train_batch_size=4)
    np.testing.assert_array_equal(moved.get_variable_value("rng/key"), straight.get_variable_value("rng/key"))


def test_checkpoints_kept_besides_are_kept_by_later_calls_too(tmp_path):
    run = {"keep_checkpoint_max": 2, "keep_checkpoint_every_n_hours": 1e-9}
    for max_steps in (4, 8, 12):
        counting(tmp_path, save=2, run=run).train(counting_input(), max_steps=max_steps)
    assert checkpoint_steps(tmp_path) == [0, 2, 4, 6, 8, 10, 12]


def test_init_fn_with_one_array_in_two_places(tmp_path):
    def init_fn():
        one = jnp.zeros(())
        return {"params": {"w": one}, "copy": {"w": one}}

    estimator = js.TPUEstimator(
        counting_model_fn, init_fn, model_dir=tmp_path, train_batch_size=4, config=run_config(save=2, every=2)
    )
    estimator.train(counting_input(), steps=5).train(counting_input(), steps=2)
    assert value(estimator) == 7


def test_logs(tmp_path, caplog):
    config = run_config(save=5, every=5, log_step_count_steps=5)
    with caplog.at_level("INFO", "jaxspec"):
        counting(tmp_path, config=config).train(counting_input(), steps=10)
    text = caplog.text
    assert "Running on 4 x cpu (no accelerator found)." in caplog.messages[0]
    assert "loss = 4, step = 5" in text
    assert "loss = 9, step = 10 (" in text
    assert "global_step/sec: " in text
    assert "examples/sec: " in text
    assert "Saving checkpoint for 5 into" in text
    assert "Loss for final step: 9.0." in text
