"""Which state a verb uses, and what is said when that would surprise."""

import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_models import counting_init, counting_input, counting_model_fn, run_config

import jaxspec as js
from jaxspec._src.checkpoint import restore


def counting(model_dir, fn=counting_model_fn, init_fn=counting_init, **run):
    return js.TPUEstimator(
        fn,
        init_fn,
        model_dir=model_dir,
        config=run_config(**{"save": 1000, **run}),
        train_batch_size=4,
        eval_batch_size=4,
        predict_batch_size=4,
    )


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_a_relative_model_dir_means_the_same_after_chdir(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    estimator = counting("runs/x").train(counting_input(), steps=3)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert estimator.evaluate(counting_input(1))["global_step"] == 3
    estimator.train(counting_input(), steps=3)
    assert estimator.get_variable_value("global_step") == 6
    assert estimator.model_dir == estimator.config.model_dir == str(tmp_path / "runs" / "x")
    assert os.listdir(tmp_path / "elsewhere") == []


def test_one_directory_may_be_named_in_two_ways(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    estimator = js.TPUEstimator(
        counting_model_fn, counting_init, model_dir="run/", config=js.RunConfig(model_dir=str(tmp_path / "run"))
    )
    assert estimator.model_dir == str(tmp_path / "run")


@pytest.mark.parametrize("address", ["az://bucket/run", "hdfs://host:9000/run", "file:///tmp/run"])
def test_a_remote_directory_is_refused_by_all_that_take_one(tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    for call in (
        lambda: js.TPUEstimator(counting_model_fn, counting_init, model_dir=address),
        lambda: js.TPUEstimator(counting_model_fn, counting_init, config=js.RunConfig(model_dir=address)),
        lambda: js.load_global_step(address),
        lambda: js.checkpoint.latest_checkpoint(address),
        lambda: js.checkpoints_iterator(address),
        lambda: js.summary.create_file_writer(address),
    ):
        with pytest.raises(
            ValueError,
            match=r"is a remote address that cannot be read or written. Expected a local directory, or one of gs://bucket/",
        ):
            call()
    assert os.listdir(tmp_path) == []


def test_a_cleared_model_dir_discards_the_state_in_memory_with_a_warning(tmp_path, caplog):
    estimator = counting(tmp_path).train(counting_input(), steps=3)
    shutil.rmtree(tmp_path)
    assert estimator.evaluate(counting_input(1))["global_step"] == 0
    said = warnings_of(caplog)
    assert f"model_dir {tmp_path} was cleared: the state in memory, of step 3, is discarded" in said[0]
    assert f"Could not find trained model in model_dir: {tmp_path}" in said[1]


def test_a_newer_checkpoint_discards_the_state_in_memory_with_a_warning(tmp_path, caplog):
    estimator = counting(tmp_path).train(counting_input(), steps=3)
    counting(tmp_path).train(counting_input(), steps=2)
    assert estimator.evaluate(counting_input(1))["global_step"] == 5
    assert "holds a checkpoint of step 5, newer than the state in memory (step 3)" in warnings_of(caplog)[-1]


def test_a_newer_checkpoint_that_is_damaged_is_passed_over_for_the_newest_that_is_whole(tmp_path, caplog):
    estimator = counting(tmp_path).train(counting_input(), steps=3)
    counting(tmp_path).train(counting_input(), steps=2)
    counting(tmp_path).train(counting_input(), steps=2)
    (tmp_path / "model.ckpt-7" / "manifest.json").write_text("{")
    caplog.clear()
    assert estimator.evaluate(counting_input(1))["global_step"] == 5
    damaged, newer = warnings_of(caplog)
    assert f"the checkpoint {tmp_path / 'model.ckpt-7'} is damaged" in damaged
    assert "holds a checkpoint of step 5, newer than the state in memory (step 3)" in newer


@pytest.mark.parametrize("verb", ["train", "evaluate", "predict"])
def test_checkpoints_of_tensorflow_are_not_passed_over_in_silence(tmp_path, caplog, verb):
    for name in ("checkpoint", "model.ckpt-900.index", "model.ckpt-1000.index", "model.ckpt-1000.data-00000-of-00001"):
        (tmp_path / name).write_text("")
    call = getattr(counting(tmp_path), verb)
    list(call(counting_input(3))) if verb == "predict" else call(counting_input(3))
    assert warnings_of(caplog)[0] == (
        f"model_dir {tmp_path} holds checkpoints of TensorFlow, and none of this library: fresh weights are used. To "
        f"begin with those of TensorFlow, write TPUEstimator(..., warm_start_from='{tmp_path}/model.ckpt-1000')."
    )
    counting(tmp_path).train(counting_input(3))
    caplog.clear()
    counting(tmp_path).evaluate(counting_input(3))
    assert not warnings_of(caplog)


def test_training_that_is_skipped_is_told_with_what_to_do(tmp_path, caplog):
    counting(tmp_path).train(counting_input(), max_steps=3)
    counting(tmp_path).train(counting_input(), max_steps=2)
    assert warnings_of(caplog) == [
        f"Skipping training since max_steps has already saved. max_steps=2, and {tmp_path / 'model.ckpt-3'} is at step "
        "3: to train on, raise max_steps or pass steps=; to begin anew, use another model_dir."
    ]


@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_fresh_weights_are_told_with_no_logging_set_up(tmp_path, verb):
    program = f"""
from tiny_models import *
estimator = js.TPUEstimator(counting_model_fn, counting_init, model_dir={str(tmp_path)!r}, eval_batch_size=4, predict_batch_size=4)
print("done", len(list(estimator.{verb}(counting_input(1)))))
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=os.path.dirname(__file__), capture_output=True, text=True, timeout=120
    )
    assert "done" in ran.stdout, ran.stderr
    told = [line for line in ran.stderr.splitlines() if str(tmp_path) in line]
    assert told == [
        f"Could not find trained model in model_dir: {tmp_path}, running initialization. The results are those of "
        "fresh weights; check model_dir, or train first."
    ]


def test_a_checkpoint_is_read_once_while_it_is_the_latest(tmp_path, monkeypatch):
    counting(tmp_path).train(counting_input(), steps=3)
    estimator, read, real = counting(tmp_path), [], restore.read_variables

    def counted(path, *args):
        read.append(os.path.basename(path))
        return real(path, *args)

    monkeypatch.setattr(restore, "read_variables", counted)
    for _ in range(3):
        assert [example["w"] for example in estimator.predict(counting_input(1))] == [3] * 4
        assert estimator.evaluate(counting_input(1))["global_step"] == 3
    assert read == ["model.ckpt-3"]
    counting(tmp_path).train(counting_input(), steps=2)
    assert [example["w"] for example in estimator.predict(counting_input(1))] == [5] * 4
    assert read == ["model.ckpt-3", "model.ckpt-5"]
    old = estimator.predict(counting_input(1), checkpoint_path=str(tmp_path / "model.ckpt-3"))
    assert [example["w"] for example in old] == [3] * 4


def test_a_checkpoint_that_is_written_anew_is_read_anew(tmp_path):
    counting(tmp_path).train(counting_input(), steps=3)
    estimator = counting(tmp_path)
    assert next(estimator.predict(counting_input(1)))["w"] == 3
    shutil.rmtree(tmp_path)
    counting(tmp_path, init_fn=lambda: {"params": {"w": jnp.float32(10)}}).train(counting_input(), steps=3)
    assert next(estimator.predict(counting_input(1)))["w"] == 13


def test_nothing_is_compiled_after_the_first_predict(tmp_path):
    counting(tmp_path).train(counting_input(), steps=3)
    estimator, compiled = counting(tmp_path), []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    for call in range(3):
        compiled.clear()
        assert len(list(estimator.predict(counting_input(2)))) == 8
        assert bool(compiled) == (call == 0)


def test_the_hooks_of_a_spec_are_made_anew_for_each_call(tmp_path):
    made = []

    class Noted(js.hooks.SessionRunHook):
        def __init__(self):
            made.append(self)

    def fn(variables, features, mode):
        spec = counting_model_fn(variables, features, mode)
        if mode == js.ModeKeys.TRAIN:
            return spec._replace(training_hooks=[js.hooks.StopAtStepHook(num_steps=5)])
        return spec._replace(**{f"{'evaluation' if mode == 'eval' else 'prediction'}_hooks": [Noted()]})

    estimator = counting(tmp_path, fn)
    for call in (1, 2, 3):
        estimator.train(counting_input())
        assert estimator.get_variable_value("global_step") == 5 * call
    for verb in (estimator.evaluate, lambda input_fn: list(estimator.predict(input_fn))):
        made.clear()
        verb(counting_input(1))
        first = list(made)
        made.clear()
        verb(counting_input(1))
        assert first
        assert made
        assert not set(map(id, first)) & set(map(id, made))


def test_a_run_makes_no_transfer_that_a_transfer_guard_disallows(tmp_path):
    def fn(variables, features, labels, mode):
        if mode == js.ModeKeys.PREDICT:
            return js.TPUEstimatorSpec(mode, predictions={"x": features})
        loss = ((features @ variables["params"]["w"] - labels) ** 2).mean()
        return js.TPUEstimatorSpec(
            mode,
            loss=loss,
            train_op=js.minimize(optax.adam(0.1)),
            eval_metrics=(lambda x: {"m": js.metrics.mean(x)}, [labels]),
            host_call=js.summary.host_call(loss=loss),
        )

    x = np.random.default_rng(0).normal(size=(22, 3)).astype(np.float32)

    def make(shards):
        return js.TPUEstimator(
            fn,
            lambda rng: {"params": {"w": jax.random.normal(rng, (3,))}},
            model_dir=tmp_path / str(shards),
            config=run_config(save=2, num_shards=shards),
            train_batch_size=8,
            eval_batch_size=8,
            predict_batch_size=8,
        )

    input_fn = js.inputs.numpy_input_fn(x, x[:, 0])
    for shards in (1, 4):
        estimator = make(shards)
        with jax.transfer_guard("disallow"):
            estimator.train(input_fn, steps=2)
            estimator.evaluate(input_fn)
            assert len(list(estimator.predict(input_fn))) == 22
            estimator.get_variable_value("params/w")
            again = make(shards)
            again.evaluate(input_fn)
            again.train(input_fn, steps=1)


def labelled_model(variables, features, labels, mode):
    y = features @ variables["params"]["w"]
    if mode == js.ModeKeys.PREDICT:
        return js.TPUEstimatorSpec(mode, predictions=y)
    return js.TPUEstimatorSpec(mode, loss=((y - labels) ** 2).mean(), train_op=js.minimize(optax.sgd(0.1)))


@pytest.mark.parametrize("later_init", ["needs labels", None])
def test_a_checkpoint_is_enough_where_init_fn_cannot_say(tmp_path, later_init):
    def init_fn(rng, features, labels):
        return {"params": {"w": jnp.ones((features.shape[-1], labels.shape[-1]))}}

    x, y = np.ones((8, 3), np.float32), np.full((8, 2), 3, np.float32)
    counting(tmp_path, labelled_model, init_fn).train(js.inputs.numpy_input_fn(x, y), steps=2)
    again = counting(tmp_path, labelled_model, init_fn if later_init else None)
    np.testing.assert_array_equal(list(again.predict(js.inputs.numpy_input_fn(x))), np.full((8, 2), 3))
    again.train(js.inputs.numpy_input_fn(x, y), steps=1)
    assert again.get_variable_value("global_step") == 3


def test_an_init_fn_that_fails_is_itself_where_the_form_of_the_variables_is_not_stored(tmp_path):
    def init_fn(features, labels):
        return {"params": [jnp.ones((features.shape[-1], labels.shape[-1]))]}

    def model_fn(variables, features, labels, mode):
        return labelled_model({"params": {"w": variables["params"][0]}}, features, labels, mode)._replace(
            **({} if mode == "infer" else {"train_op": js.minimize(optax.sgd(0.1))})
        )

    x, y = np.ones((8, 3), np.float32), np.full((8, 2), 3, np.float32)
    counting(tmp_path, model_fn, init_fn).train(js.inputs.numpy_input_fn(x, y), steps=2)
    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'shape'"):
        list(counting(tmp_path, model_fn, init_fn).predict(js.inputs.numpy_input_fn(x)))


@pytest.mark.parametrize("shards", [1, 4])
def test_an_optimizer_may_keep_the_weights_to_evaluate_in_its_state(tmp_path, shards):
    """Schedule-free SGD is evaluated at other weights than it trains at."""
    optimizer = optax.contrib.schedule_free_sgd(0.3)

    def fn(variables, features, labels, mode, opt_state):
        params = variables["params"]
        if mode != js.ModeKeys.TRAIN:
            params = optax.contrib.schedule_free_eval_params(opt_state, params)
        y = features @ params["w"]
        if mode == js.ModeKeys.PREDICT:
            return js.TPUEstimatorSpec(mode, predictions=y)
        return js.TPUEstimatorSpec(mode, loss=((y - labels) ** 2).mean(), train_op=js.minimize(optimizer))

    def make():
        return js.TPUEstimator(
            fn,
            lambda: {"params": {"w": jnp.zeros(3)}},
            model_dir=tmp_path,
            config=run_config(save=1000, num_shards=shards),
            train_batch_size=8,
            eval_batch_size=8,
            predict_batch_size=8,
        )

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 3)).astype(np.float32), rng.normal(size=64).astype(np.float32)
    trained = make().train(js.inputs.numpy_input_fn(x, y))
    b1, z, w = (trained.get_variable_value(name) for name in ("opt_state/b1", "opt_state/z/w", "params/w"))
    predicted = x @ ((w - (1 - b1) * z) / b1)
    assert not np.allclose(x @ w, predicted, atol=1e-3)
    read = make()
    with pytest.raises(TypeError) as caught:
        list(read.predict(js.inputs.numpy_input_fn(x)))
    assert "call evaluate before predict, or train in the same process" in "".join(caught.value.__notes__)
    for estimator in (trained, read):
        loss = estimator.evaluate(js.inputs.numpy_input_fn(x, y))["loss"]
        np.testing.assert_allclose(loss, ((predicted - y) ** 2).mean(), rtol=1e-5)
        np.testing.assert_allclose(
            list(estimator.predict(js.inputs.numpy_input_fn(x))), predicted, rtol=1e-4, atol=1e-5
        )


def test_training_past_the_last_number_of_a_step_is_refused(tmp_path):
    estimator = counting(tmp_path).train(counting_input(), steps=3)
    with pytest.raises(
        ValueError, match="training 2147483645 steps from step 3 leads past 2147483647, the last number"
    ):
        estimator.train(counting_input(), steps=2**31 - 3)


def test_a_warm_start_says_what_to_do_with_checkpoints_of_tensorflow(tmp_path, caplog):
    (tmp_path / "model.ckpt-9.index").write_text("")
    settings = js.WarmStartSettings(str(tmp_path / "model.ckpt-9"), vars_to_warm_start=None)
    made = js.TPUEstimator(
        counting_model_fn,
        counting_init,
        model_dir=tmp_path,
        config=run_config(),
        warm_start_from=settings,
        train_batch_size=4,
    )
    with pytest.raises(ValueError, match=r"model\.ckpt-9"):
        made.train(counting_input(3))
    assert not [text for text in warnings_of(caplog) if "holds checkpoints of TensorFlow" in text]
