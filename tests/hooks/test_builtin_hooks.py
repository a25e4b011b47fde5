"""The hooks that come with the library, in real runs."""

import glob
import itertools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_models import (
    counting_init,
    counting_input,
    counting_model_fn,
    data,
    linear_init,
    linear_model_fn,
    run_config,
)

import jaxspec as js
from jaxspec._src.device import peak_flops


def counting(model_dir, every=1, save=1000, shards=1, **run):
    def model_fn(variables, features, mode, step):
        spec = counting_model_fn(variables, features, mode)
        if mode == js.ModeKeys.PREDICT:
            return spec
        x = features["x"]
        return spec._replace(
            host_call=(
                lambda **tensors: None,
                {"step": step, "x": x, "mean": x.mean(), "nan_at_5": jnp.where(x == 5, jnp.nan, x)},
            )
        )

    config = run_config(
        save=save, every=every, num_shards=shards, **{"log_step_count_steps": None, "save_summary_steps": None, **run}
    )
    sizes = dict.fromkeys(("train_batch_size", "eval_batch_size", "predict_batch_size"), 4)
    return js.TPUEstimator(model_fn, counting_init, model_dir=model_dir, config=config, **sizes)


def scalars(logdir, tag):
    """[(step, value)] of a tag, as TensorBoard reads it."""
    events = EventAccumulator(str(logdir)).Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)] if tag in events.Tags()["scalars"] else []


@pytest.fixture
def logged(caplog):
    """The lines logged so far, without those about checkpoints and the run."""
    caplog.set_level("INFO", "jaxspec")
    quiet = ("Saving checkpoint", "Loss for final", "Running on", "Restored", "Training took")
    return lambda: [line for line in caplog.messages if not line.startswith(quiet)]


# Every so many steps


@pytest.mark.parametrize(("every", "fires"), [(1, [1, 4, 7, 10]), (4, [4, 8, 10]), (7, [7, 10]), (20, [10])])
def test_every_n_steps_fires_when_a_multiple_is_crossed(tmp_path, logged, every, fires):
    hook = js.hooks.LoggingTensorHook({"step": "global_step"}, every_n_iter=3)
    counting(tmp_path, every).train(counting_input(), steps=10, hooks=[hook])
    assert [int(line.split("=")[1].split()[0]) for line in logged()] == fires


@pytest.mark.parametrize("every", [1, 4])
def test_the_rate_is_kept_with_longer_loops(tmp_path, every):
    """A timer that counts from its last firing would fall behind: 4, 12, 20, ... for every 6 steps."""
    hook = js.hooks.SummarySaverHook(save_steps=6, output_dir=tmp_path / "mine", summary_op="loss")
    counting(tmp_path, every).train(counting_input(), steps=24, hooks=[hook])
    steps = {1: [1, 7, 13, 19], 4: [4, 8, 16, 20]}[every]
    assert scalars(tmp_path / "mine", "loss") == [(step, step - 1) for step in steps]


def test_second_or_step_timer():
    timer = js.hooks.SecondOrStepTimer(every_steps=3)
    seen = []
    for step in (0, 1, 2, 3, 3, 4, 7, 9, 10, 1):
        fires = timer.should_trigger_for_step(step)
        seen.append((step, fires, timer.update_last_triggered_step(step)[1] if fires else None))
    assert [(step, elapsed) for step, fires, elapsed in seen if fires] == [(0, None), (3, 3), (7, 4), (10, 3)]
    now = [0.0]
    timer = js.hooks.SecondOrStepTimer(every_secs=2, clock=lambda: now[0])
    assert timer.should_trigger_for_step(5)
    assert timer.update_last_triggered_step(5) == (None, None)
    now[0] = 1.5
    assert not timer.should_trigger_for_step(6)
    now[0] = 2.0
    assert not timer.should_trigger_for_step(5)
    assert timer.should_trigger_for_step(6)
    assert timer.update_last_triggered_step(6) == (2.0, 1)
    assert timer.last_triggered_step() == 6
    timer.reset()
    assert timer.should_trigger_for_step(6)


@pytest.mark.parametrize(
    "make",
    [
        js.hooks.SecondOrStepTimer,
        lambda every_secs, every_steps: js.hooks.CheckpointSaverHook(".", every_secs, every_steps),
        lambda every_secs, every_steps: js.hooks.ProfilerHook(every_steps, every_secs),
        lambda every_secs, every_steps: js.hooks.SummarySaverHook(every_steps, every_secs, summary_op="loss"),
    ],
)
def test_both_or_neither_of_seconds_and_steps(make):
    with pytest.raises(ValueError, match="Either every_secs or every_steps should be provided. Both are None"):
        make(None, None)
    with pytest.raises(ValueError, match="Can not provide both every_secs and every_steps. Got 1 seconds and 2 steps"):
        make(1, 2)


# LoggingTensorHook


def test_logging_tensor(tmp_path, logged):
    hook = js.hooks.LoggingTensorHook(["mean", "x"], every_n_iter=2)
    estimator = counting(tmp_path, shards=4).train(counting_input(), steps=3, hooks=[hook])
    lines = logged()
    assert lines[0] == "mean = 0.0, x = [0. 0. 0. 0.]"
    assert lines[1].startswith("mean = 2.0, x = [2. 2. 2. 2.] (")
    assert lines[1].endswith(" sec)")
    # Steps count from the start of each session.
    estimator.train(counting_input(), steps=2, hooks=[hook], resume_input=False)
    assert logged()[2] == "mean = 0.0, x = [0. 0. 0. 0.]"
    at_end = js.hooks.LoggingTensorHook(
        {"z": "loss", "a": "params/w"}, at_end=True, formatter=lambda values: f"the end: {values['a']}"
    )
    estimator.train(counting_input(), steps=2, hooks=[at_end], resume_input=False)
    assert logged()[3:] == ["the end: 7.0"]


def test_logging_tensor_in_evaluation(tmp_path, logged):
    counting(tmp_path).evaluate(counting_input(4), hooks=[js.hooks.LoggingTensorHook(["loss"], every_n_iter=3)])
    assert [line.split(" (")[0] for line in logged() if line.startswith("loss = ")] == ["loss = 0.0", "loss = 3.0"]


def test_logging_tensor_refuses():
    with pytest.raises(
        ValueError, match="exactly one of every_n_iter and every_n_secs must be provided. Got every_n_iter=None"
    ):
        js.hooks.LoggingTensorHook(["loss"])
    with pytest.raises(ValueError, match="every_n_iter=1, every_n_secs=2"):
        js.hooks.LoggingTensorHook(["loss"], every_n_iter=1, every_n_secs=2)
    with pytest.raises(ValueError, match="every_n_iter should be > 0, got 0"):
        js.hooks.LoggingTensorHook(["loss"], every_n_iter=0)


def test_an_unknown_name_is_refused_before_the_first_step(tmp_path):
    with pytest.raises(ValueError, match=r"unknown fetch 'los'. The names here are \['global_step', 'loss', "):
        counting(tmp_path).train(
            counting_input(), steps=3, hooks=[js.hooks.LoggingTensorHook(["los"], every_n_iter=100)]
        )


# StopAtStepHook


@pytest.mark.parametrize("every", [1, 4, 7])
def test_stop_at_step_ends_loops_exactly_there(tmp_path, every):
    estimator = counting(tmp_path, every).train(counting_input(), hooks=[js.hooks.StopAtStepHook(num_steps=3)])
    assert estimator.get_variable_value("global_step") == 3
    estimator.train(counting_input(), steps=10, hooks=[js.hooks.StopAtStepHook(last_step=5)])
    assert estimator.get_variable_value("global_step") == 5
    # It looks after a step.
    again = js.hooks.StopAtStepHook(last_step=2)
    estimator.train(counting_input(), steps=10, hooks=[again])
    assert estimator.get_variable_value("global_step") == 6
    with pytest.raises(ValueError, match="One of num_steps or last_step must be specified"):
        js.hooks.StopAtStepHook()
    with pytest.raises(
        ValueError, match="Only one of num_steps or last_step can be specified. Got num_steps=1, last_step=2"
    ):
        js.hooks.StopAtStepHook(1, 2)


# Rates


@pytest.mark.parametrize(("every", "steps"), [(1, [4, 7, 10]), (4, [8, 12])])
def test_step_counter(tmp_path, every, steps):
    now = iter(range(1000))
    hook = js.hooks.StepCounterHook(every_n_steps=3, output_dir=tmp_path / "mine", clock=lambda: next(now))
    counting(tmp_path, every).train(counting_input(), steps=12 if every == 4 else 10, hooks=[hook])
    rates = scalars(tmp_path / "mine", "global_step/sec")
    assert [step for step, _ in rates] == steps
    assert [rate for _, rate in rates] == [3.0 if every == 1 else 4.0] * len(steps)
    with pytest.raises(
        ValueError,
        match="exactly one of every_n_steps and every_n_secs should be provided. Got every_n_steps=100, every_n_secs=5",
    ):
        js.hooks.StepCounterHook(every_n_secs=5)


def test_examples_per_second_gives_its_result_as_values(tmp_path):
    now = [0.0]

    class OneSecondALoop(js.hooks.SessionRunHook):
        """The first one takes 11."""

        def before_run(self, run_context):
            now[0] += 11.0 if run_context.first_step == 0 else 1.0

    hook = js.hooks.ExamplesPerSecondHook(8, every_n_steps=4, output_dir=tmp_path / "mine", clock=lambda: now[0])
    with pytest.raises(ValueError, match="nothing was measured. Train for more than one loop"):
        hook.result()
    counting(tmp_path, every=4).train(counting_input(), steps=20, hooks=[hook, OneSecondALoop()])
    assert hook.result() == (4.0, 32.0, 0.0) or hook.result().steps_per_sec == 4.0
    assert hook.result().examples_per_sec == 32.0
    assert scalars(tmp_path / "mine", "examples/sec")[-1] == (20, 32.0)


def test_compile_time_is_what_the_first_loop_took_longer(tmp_path):
    now = [0.0]

    class Clock(js.hooks.SessionRunHook):
        def before_run(self, run_context):
            now[0] += 10.0 if run_context.first_step == 0 else 1.0

    hook = js.hooks.ExamplesPerSecondHook(8, clock=lambda: now[0])
    counting(tmp_path, every=4).train(counting_input(), steps=20, hooks=[hook, Clock()])
    assert hook.result() == js.hooks.Rates(4.0, 32.0, 9.0)


@pytest.mark.parametrize("peak", [None, 1e6])
def test_rates_know_the_flops_and_where_the_peak_is_known_its_share(tmp_path, monkeypatch, peak):
    """By hand: [8, 4] @ [4, 3] forward and for the gradient, 4 steps/s, on two devices that could do 1e6 FLOP/s each."""
    if peak is not None:
        monkeypatch.setitem(peak_flops._PEAKS, "cpu", (peak, "source"))
    now = [0.0]

    class OneSecondALoop(js.hooks.SessionRunHook):
        def before_run(self, run_context):
            now[0] += 1.0

    hook = js.hooks.ExamplesPerSecondHook(8, every_n_steps=4, output_dir=tmp_path / "mine", clock=lambda: now[0])
    config = run_config(every=4, num_shards=2)
    estimator = js.TPUEstimator(linear_model_fn, linear_init, model_dir=tmp_path, config=config, train_batch_size=8)
    x, y = data(8)
    estimator.train(lambda: itertools.repeat((x, y)), steps=20, hooks=[hook, OneSecondALoop()])
    flops_per_sec = 4 * 2 * (2 * 8 * 4 * 3)
    mfu = None if peak is None else flops_per_sec / (2 * peak)
    assert hook.result() == js.hooks.Rates(4.0, 32.0, 0.0, flops_per_sec, mfu)
    assert scalars(tmp_path / "mine", "TFLOP/sec")[-1] == (20, pytest.approx(flops_per_sec / 1e12))
    assert [rate for _, rate in scalars(tmp_path / "mine", "MFU")][-1:] == (
        [] if peak is None else [pytest.approx(mfu)]
    )


# SummarySaverHook, NanTensorHook, FinalOpsHook


def test_summary_saver_writes_values_by_name(tmp_path):
    hook = js.hooks.SummarySaverHook(save_steps=2, summary_op={"train/mean": "mean", "x": "x"})
    counting(tmp_path, every=2, shards=4).train(counting_input(), steps=4, hooks=[hook])
    assert scalars(tmp_path, "train/mean") == [(2, 1.0), (4, 3.0)]
    assert scalars(tmp_path, "x/3") == [(2, 1.0), (4, 3.0)]
    with pytest.raises(
        ValueError, match="Exactly one of scaffold or summary_op must be provided. Here it must be summary_op"
    ):
        js.hooks.SummarySaverHook(save_steps=2)
    with pytest.raises(ValueError, match="a Scaffold holds no summaries here"):
        js.hooks.SummarySaverHook(save_steps=2, scaffold=js.Scaffold())


def test_nan_tensor(tmp_path, caplog):
    with pytest.raises(
        js.hooks.NanLossDuringTrainingError, match="nan_at_5 is NaN at the end of the loop of steps 5 to 5"
    ):
        counting(tmp_path / "fails").train(counting_input(), steps=9, hooks=[js.hooks.NanTensorHook("nan_at_5")])
    assert "Model diverged with nan_at_5 = NaN." in caplog.text
    hook = js.hooks.NanTensorHook("nan_at_5", fail_on_nan_loss=False)
    estimator = counting(tmp_path / "stops").train(counting_input(), steps=9, hooks=[hook])
    assert estimator.get_variable_value("global_step") == 6


def test_final_ops(tmp_path):
    hook = js.hooks.FinalOpsHook({"loss": "loss", "state": ["params/w"]})
    counting(tmp_path, every=4).train(counting_input(), steps=6, hooks=[hook])
    assert hook.final_ops_values == {"loss": 5.0, "state": [6.0]}
    with pytest.raises(ValueError, match="there is nothing to feed here"):
        js.hooks.FinalOpsHook("loss", final_ops_feed_dict={})


# ProfilerHook


def test_profiler_writes_traces_that_tensorboard_opens(tmp_path):
    hook = js.hooks.ProfilerHook(save_steps=4, output_dir=str(tmp_path / "traces"))
    counting(tmp_path, every=2).train(counting_input(), steps=8, hooks=[hook])
    # Not the first loop; at 5 and 9 steps: in the loops of steps 4 to 5 and, if there were one, 8 to 9.
    runs = glob.glob(str(tmp_path / "traces" / "plugins" / "profile" / "*"))
    assert len(runs) == 1
    assert glob.glob(f"{runs[0]}/*.xplane.pb")
    # A run that fails within a traced loop does not keep the next one from tracing.

    class Fails(js.hooks.SessionRunHook):
        def after_run(self, run_context, run_values):
            if run_context.last_step >= 4:
                raise KeyError("mine")

    failing = js.hooks.ProfilerHook(save_steps=4, output_dir=str(tmp_path / "again"))
    estimator = counting(tmp_path / "failing", every=2)
    with pytest.raises(KeyError, match="mine"):
        estimator.train(counting_input(), steps=8, hooks=[Fails(), failing])
    estimator.train(counting_input(), steps=8, hooks=[failing])
    assert glob.glob(str(tmp_path / "again" / "plugins" / "profile" / "*" / "*.xplane.pb"))


# Nothing waits for a hook that asks for nothing


def fetched(monkeypatch, train):
    """How often training fetches from the devices."""
    count = []
    device_get = jax.device_get

    def counted(x):
        count.extend(jax.tree.leaves(x))
        return device_get(x)

    with monkeypatch.context() as patch:
        patch.setattr(jax, "device_get", counted)
        # What is fetched must be fetched by device_get, and so be counted. (On a CPU the guard sees nothing.)
        with jax.transfer_guard_device_to_host("disallow"):
            train()
    return len(count)


def test_hooks_that_ask_for_nothing_transfer_nothing(tmp_path, monkeypatch):
    class Nothing(js.hooks.SessionRunHook):
        def before_run(self, run_context):
            pass

        def after_run(self, run_context, run_values):
            assert run_context.session.global_step == run_context.last_step + 1

    class Loss(Nothing):
        def before_run(self, run_context):
            return js.hooks.SessionRunArgs("loss")

    estimator = js.TPUEstimator(
        counting_model_fn, counting_init, model_dir=tmp_path, train_batch_size=4, config=run_config(save=1000, every=1)
    )

    def transfers(*hooks):
        return fetched(monkeypatch, lambda: estimator.train(counting_input(), steps=10, hooks=hooks))

    transfers()
    none = transfers()
    quiet = [Nothing(), js.hooks.StopAtStepHook(last_step=10_000), js.hooks.StepCounterHook()]
    assert transfers(*quiet) == none
    assert transfers(Loss()) == none + 10


def test_hooks_that_ask_for_nothing_do_not_wait_for_the_devices(tmp_path):
    ran = threading.Event()
    waited = []

    def wait(x):
        waited.append(ran.wait(30))
        return np.asarray(x)

    def model_fn(variables, features, mode):
        x = features["x"]
        x = jax.pure_callback(wait, jax.ShapeDtypeStruct(x.shape, x.dtype), x)
        return counting_model_fn(variables, {"x": x}, mode)

    class Hook(js.hooks.SessionRunHook):
        def after_run(self, run_context, run_values):
            ran.set()

    # Two shards: on one CPU device a program with a callback is run by the thread that dispatches it.
    js.TPUEstimator(
        model_fn, counting_init, model_dir=tmp_path, train_batch_size=4, config=run_config(every=1, num_shards=2)
    ).train(counting_input(), steps=2, hooks=[Hook()])
    assert waited == [True] * 4


# In two sessions, without steps, in evaluation.


def test_a_hook_may_be_in_training_and_in_the_evaluations_within(tmp_path, logged):
    hook = js.hooks.LoggingTensorHook(["loss"], every_n_iter=5)
    estimator = counting(tmp_path, every=1, save=3)
    js.train_and_evaluate(
        estimator,
        js.TrainSpec(counting_input(), max_steps=8, hooks=[hook]),
        js.EvalSpec(counting_input(2), hooks=[hook], throttle_secs=0),
    )
    # In training at the steps 1 and 6; of each evaluation, at 3, 6 and 8, the first batch.
    assert [line.partition(" (")[0] for line in logged() if line.startswith("loss = ")] == [
        "loss = 0.0",
        "loss = 0.0",
        "loss = 0.0",
        "loss = 5.0",
        "loss = 0.0",
    ]


def test_summaries_go_where_those_of_the_session_go(tmp_path):
    hook = js.hooks.SummarySaverHook(save_steps=2, summary_op={"mine": "loss"})
    estimator = counting(tmp_path / "first")
    estimator.train(counting_input(), steps=3, hooks=[hook])
    estimator.evaluate(counting_input(1), hooks=[hook])
    counting(tmp_path / "second").train(counting_input(), steps=1, hooks=[hook])
    assert scalars(tmp_path / "first", "mine") == [(1, 0), (3, 2)]
    assert scalars(estimator.eval_dir(), "mine") == [(3, 0)]
    assert scalars(tmp_path / "second", "mine") == [(1, 0)]
    with pytest.raises(
        ValueError, match=r"a prediction has no event files of its own; pass SummarySaverHook\(output_dir"
    ):
        list(estimator.predict(counting_input(1), hooks=[js.hooks.SummarySaverHook(2, summary_op="predictions/x")]))


@pytest.mark.parametrize("make", [js.hooks.FinalOpsHook, lambda names: js.hooks.LoggingTensorHook(names, at_end=True)])
def test_a_session_without_a_step_has_nothing_to_fetch_at_its_end(tmp_path, make):
    class Stops(js.hooks.SessionRunHook):
        def before_run(self, run_context):
            raise StopIteration

    hook = make(["loss"])
    counting(tmp_path).train(counting_input(), steps=1, hooks=[Stops(), hook])
    assert getattr(hook, "final_ops_values", None) is None


def test_rates_and_steps_of_an_evaluation_are_those_of_its_batches(tmp_path):
    estimator = counting(tmp_path)
    estimator.train(counting_input(), steps=10)
    now = [0.0]

    class ASecondEach(js.hooks.SessionRunHook):
        def before_run(self, run_context):
            now[0] += 1

    rates = js.hooks.ExamplesPerSecondHook(4, clock=lambda: now[0])
    estimator.evaluate(counting_input(5), steps=5, hooks=[ASecondEach(), rates])
    assert rates.result().steps_per_sec == 1
    assert rates.result().examples_per_sec == 4
    stop, seen = js.hooks.StopAtStepHook(num_steps=2), []
    for _ in estimator.predict(counting_input(5), hooks=[stop], yield_single_examples=False):
        seen.append(1)
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: js.hooks.SummarySaverHook(0, summary_op="loss"), ValueError, "save_steps should be > 0, got 0"),
        (lambda: js.hooks.StepCounterHook(-1), ValueError, "every_n_steps should be > 0, got -1"),
        (lambda: js.hooks.ProfilerHook(save_secs="1"), TypeError, r"save_secs should be a number, got '1' \(str\)"),
        (
            lambda: js.hooks.CheckpointSaverHook(save_steps="3"),
            TypeError,
            "save_steps should be a whole number, got '3'",
        ),
        (lambda: js.hooks.CheckpointSaverHook(save_steps=0), ValueError, "save_steps should be > 0, got 0"),
        (lambda: js.hooks.StopAtStepHook("3"), TypeError, "num_steps should be a whole number, got '3'"),
        (
            lambda: js.hooks.SecondOrStepTimer(every_steps=1.5),
            TypeError,
            "every_steps should be a whole number, got 1.5",
        ),
    ],
)
def test_numbers_that_are_none(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_next_step_that_is_no_number(tmp_path):
    class Wrong(js.hooks.SessionRunHook):
        def next_step(self, global_step):
            return "3"

    with pytest.raises(TypeError, match="what Wrong.next_step returns should be a whole number, got '3'"):
        counting(tmp_path).train(counting_input(), steps=1, hooks=[Wrong()])


def test_one_name_is_a_list_of_one(tmp_path, logged):
    counting(tmp_path).train(counting_input(), steps=1, hooks=[js.hooks.LoggingTensorHook("loss", every_n_iter=1)])
    assert "loss = 0.0" in logged()


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda x: js.hooks.LoggingTensorHook({"loss": x}, every_n_iter=1), r"LoggingTensorHook: tensors\['loss'\]"),
        (lambda x: js.hooks.LoggingTensorHook([x], every_n_iter=1), r"LoggingTensorHook: tensors\[0\]"),
        (lambda x: js.hooks.SummarySaverHook(1, summary_op=x), "SummarySaverHook: summary_op"),
        (js.hooks.NanTensorHook, "NanTensorHook: loss_tensor"),
        (js.hooks.FinalOpsHook, "FinalOpsHook: final_ops"),
    ],
)
def test_a_tensor_where_a_name_belongs(make, argument):
    with pytest.raises(TypeError, match=rf"{argument} is an array, float32\[\]; hooks ask for tensors by name"):
        make(jnp.float32(1))


def test_an_unknown_fetch_names_who_asked(tmp_path):
    class Asks(js.hooks.SessionRunHook):
        def before_run(self, run_context):
            return js.hooks.SessionRunArgs("los")

    with pytest.raises(ValueError, match="unknown fetch 'los'") as caught:
        counting(tmp_path).train(counting_input(), steps=1, hooks=[Asks()])
    assert caught.value.__notes__ == ["asked for by Asks.before_run, in training"]


def test_more_arguments_that_cannot_work(tmp_path):
    with pytest.raises(TypeError, match="batch_size should be a whole number, got 'a'"):
        js.hooks.ExamplesPerSecondHook("a")
    with pytest.raises(ValueError, match="max_steps_without_decrease should be > 0, got -3"):
        js.hooks.stop_if_no_decrease_hook(counting(tmp_path), "loss", -3)
