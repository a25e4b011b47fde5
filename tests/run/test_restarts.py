"""RunConfig(max_restarts=...): after an error of the devices training goes on, and ends where it would have ended."""

import os
import signal

import jax
import pytest
from insides import state_on_host
from tiny_models import (
    Net,
    assert_trees_equal,
    counting_init,
    counting_input,
    counting_model_fn,
    data,
    net_model_fn,
    run_config,
)

import jaxspec as js
from jaxspec._src.device.program import Program
from jaxspec._src.run import restarts
from jaxspec._src.run.restarts import may_be_cured, with_restarts
from jaxspec.checkpoint import checkpoint_steps
from jaxspec.hooks import SessionRunHook

LOST = "UNAVAILABLE: the device is gone"


def device_error(text=LOST):
    return jax.errors.JaxRuntimeError(text)


@pytest.mark.parametrize(
    "code", ["ABORTED", "CANCELLED", "DATA_LOSS", "DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE", "UNKNOWN"]
)
def test_errors_of_the_devices_and_the_runtime_may_be_cured(code):
    assert may_be_cured(device_error(f"{code}: something"))


@pytest.mark.parametrize(
    "error",
    [
        *(device_error(f"{code}: x") for code in ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "FAILED_PRECONDITION")),
        *(device_error(f"{code}: x") for code in ("UNIMPLEMENTED", "NOT_FOUND", "PERMISSION_DENIED", "OUT_OF_RANGE")),
        device_error("INTERNALLY: x"),
        device_error(""),
        RuntimeError(LOST),
        OSError(5, "Input/output error"),
        KeyboardInterrupt(),
        js.hooks.NanLossDuringTrainingError("UNAVAILABLE: x"),
    ],
    ids=repr,
)
def test_others_come_again(error):
    assert not may_be_cured(error)


def test_the_error_of_a_callback_of_the_users_is_not_one_of_the_devices():
    def fails(x):
        raise ValueError("mine")

    with pytest.raises(jax.errors.JaxRuntimeError) as caught:
        jax.block_until_ready(jax.jit(lambda x: jax.pure_callback(fails, jax.ShapeDtypeStruct((), x.dtype), x))(1.0))
    assert str(caught.value).startswith("INTERNAL:")
    assert not may_be_cured(caught.value)


class Fails(SessionRunHook):
    """Raises an error after the loop that ends at each of the steps, once for each."""

    def __init__(self, *steps, error=LOST):
        self.steps, self.error, self.calls = list(steps), error, []

    def begin(self):
        self.calls.append("begin")

    def after_create_session(self, session, coord):
        self.calls.append(f"after_create_session {session.global_step}")

    def after_run(self, run_context, run_values):
        if run_context.session.global_step in self.steps:
            self.steps.remove(run_context.session.global_step)
            raise device_error(self.error)

    def abort(self):
        self.calls.append("abort")

    def end(self, session):
        self.calls.append(f"end {session.global_step}")


def counting(model_dir, fn=counting_model_fn, save=4, every=2, **kwargs):
    config = run_config(save=save, every=every, num_shards=1, **{"max_restarts": 3, **kwargs})
    return js.TPUEstimator(fn, counting_init, model_dir=model_dir, config=config, train_batch_size=4)


def resumable(model_dir, **kwargs):
    """An estimator whose weights depend on the key, the optimizer's state and the order of the input."""
    return js.TPUEstimator(
        net_model_fn,
        Net(),
        model_dir=model_dir,
        config=run_config(every=3, tf_random_seed=3, **kwargs),
        train_batch_size=8,
    )


def shuffled():
    x, y = data(rows=72)
    return js.inputs.numpy_input_fn(x, y, num_epochs=None, shuffle=True, seed=3)


def test_the_final_weights_equal_those_of_an_undisturbed_run_bit_for_bit(tmp_path, caplog):
    undisturbed = resumable(tmp_path / "a", save=4).train(shuffled(), max_steps=20)
    hook = Fails(7, 15)
    disturbed = resumable(tmp_path / "b", save=4, max_restarts=2).train(shuffled(), max_steps=20, hooks=[hook])
    assert hook.steps == []
    assert_trees_equal(state_on_host(disturbed), state_on_host(undisturbed))
    assert checkpoint_steps(tmp_path / "b")[-1] == 20
    assert "Restart 1 of 2, after an error of the devices or the runtime:" in caplog.text
    assert f"{LOST}\nraised by Fails.after_run, in training, at global step 7\n" in caplog.text
    assert "Restart 2 of 2, after an error of the devices or the runtime:" in caplog.text
    assert "begins again" not in caplog.text  # the input


def test_the_hooks_are_called_as_in_a_new_call_of_train(tmp_path):
    hook = Fails(6)
    counting(tmp_path).train(counting_input(), max_steps=10, hooks=[hook])
    assert hook.calls == ["begin", "after_create_session 0", "abort", "begin", "after_create_session 4", "end 10"]


def test_an_error_of_a_dispatch_that_has_donated_the_state(tmp_path, monkeypatch):
    calls = []

    def lost(self, *args, real=Program.__call__):
        done = real(self, *args)
        calls.append(args)
        if len(calls) == 4:
            raise device_error()
        return done

    monkeypatch.setattr(Program, "__call__", lost)
    estimator = counting(tmp_path).train(counting_input(), max_steps=10)
    assert estimator.get_variable_value("params/w") == estimator.get_variable_value("global_step") == 10


def test_the_end_by_steps_stays_what_it_was(tmp_path):
    counting(tmp_path).train(counting_input(), steps=5)
    counting(tmp_path).train(counting_input(), steps=10, hooks=[Fails(11)])
    assert checkpoint_steps(tmp_path)[-1] == 15


def test_an_input_without_a_position_begins_again_with_the_warning_of_a_new_call(tmp_path, caplog):
    counting(tmp_path).train(counting_input(), max_steps=10, hooks=[Fails(6)])
    assert "Training goes on at global step 4, but input_fn" in caplog.text


def test_without_a_checkpoint_it_begins_anew_and_says_so(tmp_path, caplog):
    estimator = counting(tmp_path, save=None).train(counting_input(), steps=10, hooks=[Fails(6)])
    assert f"There is no checkpoint in {tmp_path}: training begins anew with fresh weights." in caplog.text
    assert estimator.get_variable_value("params/w") == estimator.get_variable_value("global_step") == 10


def test_a_damaged_checkpoint_is_passed_over(tmp_path, caplog):
    class Damages(Fails):
        def abort(self):
            (tmp_path / "model.ckpt-8" / "manifest.json").write_text("{}")

    hook = Damages(10)
    estimator = counting(tmp_path).train(counting_input(), max_steps=12, hooks=[hook])
    assert "after_create_session 4" in hook.calls
    assert "model.ckpt-8 is damaged" in caplog.text
    assert estimator.get_variable_value("params/w") == 12


def test_the_error_after_the_last_restart_says_how_many_there_were(tmp_path, caplog):
    hook = Fails(2, 4, 6, 8)
    with pytest.raises(jax.errors.JaxRuntimeError, match=LOST) as caught:
        counting(tmp_path).train(counting_input(), max_steps=10, hooks=[hook])
    assert "raised after 3 restarts, as RunConfig(max_restarts=3) says" in caught.value.__notes__
    assert caplog.text.count("Restart ") == 3


def test_restarts_without_progress_count(tmp_path):
    hook = Fails(2, 2, 2, 2)
    with pytest.raises(jax.errors.JaxRuntimeError) as caught:
        counting(tmp_path).train(counting_input(), max_steps=10, hooks=[hook])
    assert "raised after 3 restarts, as RunConfig(max_restarts=3) says" in caught.value.__notes__


@pytest.mark.parametrize(("most", "error"), [(3, "RESOURCE_EXHAUSTED: no memory"), (0, LOST)])
def test_others_are_raised_as_they_are(tmp_path, caplog, most, error):
    hook = Fails(6, error=error)
    with pytest.raises(jax.errors.JaxRuntimeError, match=error) as caught:
        counting(tmp_path, max_restarts=most).train(counting_input(), max_steps=10, hooks=[hook])
    assert caught.value.__notes__ == ["raised by Fails.after_run, in training, at global step 6"]
    assert "Restart" not in caplog.text


def test_an_error_after_a_signal_ends_the_training(tmp_path, caplog):
    class Interrupted(Fails):
        def after_run(self, run_context, run_values):
            os.kill(os.getpid(), signal.SIGTERM)
            super().after_run(run_context, run_values)

    heard = []
    before = signal.signal(signal.SIGTERM, lambda signum, frame: heard.append(signum))
    try:
        with pytest.raises(jax.errors.JaxRuntimeError, match=LOST):
            counting(tmp_path).train(counting_input(), max_steps=10, hooks=[Interrupted(2)])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]
    assert "Restart" not in caplog.text


def test_several_processes_are_left_to_what_has_started_them(monkeypatch):
    def run():
        raise device_error()

    monkeypatch.setattr(restarts.jax, "process_count", lambda: 2)
    with pytest.raises(jax.errors.JaxRuntimeError) as caught:
        with_restarts(3, run, lambda: None, lambda: False)
    assert "restarts a training of one process" in caught.value.__notes__[0]


def test_train_and_evaluate_goes_on_too(tmp_path):
    sizes = dict.fromkeys(("train_batch_size", "eval_batch_size"), 4)
    config = run_config(save=4, every=2, num_shards=1, max_restarts=1)
    estimator = js.TPUEstimator(counting_model_fn, counting_init, model_dir=tmp_path, config=config, **sizes)
    results, _ = js.train_and_evaluate(
        estimator,
        js.TrainSpec(counting_input(), max_steps=10, hooks=[Fails(6)]),
        js.EvalSpec(counting_input(2), steps=None, throttle_secs=0),
    )
    assert results["global_step"] == 10


@pytest.mark.parametrize(("value", "error"), [(-1, ValueError), (1.5, TypeError), (None, TypeError), (True, TypeError)])
def test_the_number_is_a_whole_one(value, error):
    with pytest.raises(error, match="max_restarts should be"):
        js.RunConfig(max_restarts=value)
