"""The verbs in several threads: state and step belong together, and a trained state is never passed over."""

import threading

import jax.numpy as jnp
import optax
import pytest
from tiny_models import counting_init, counting_input, run_config

import jaxspec as js


def model_fn(variables, features, mode, step):
    """Each step adds 1 to `w`; loss and predictions tell `w` and the step."""
    w = variables["params"]["w"]
    told = {"w": jnp.zeros_like(features["x"]) + w, "step": jnp.zeros_like(features["x"]) + step}
    return js.TPUEstimatorSpec(
        mode, predictions=told, loss=w, train_op=js.minimize(optax.sgd(1.0), lambda v: -v["params"]["w"])
    )


def counting(model_dir=None, fn=model_fn, every=1, shards=1, save=None):
    return js.TPUEstimator(
        fn,
        counting_init,
        model_dir=model_dir,
        config=run_config(save=save, every=every, num_shards=shards),
        train_batch_size=4,
        eval_batch_size=4,
        predict_batch_size=4,
    )


def while_training(estimator, steps, read):
    """Calls `read` again and again in a thread while `estimator` trains; returns how often, and raises what it
    raised."""
    stop, calls, errors = threading.Event(), [0], []

    def work():
        try:
            while not stop.is_set():
                read()
                calls[0] += 1
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        estimator.train(counting_input(), steps=steps)
    finally:
        stop.set()
        thread.join()
    for error in errors:
        raise error
    return calls[0]


@pytest.mark.parametrize("shards", [1, 4])
def test_evaluate_in_a_thread_sees_a_trained_state_with_its_step(tmp_path, shards):
    estimator = counting(tmp_path, shards=shards).train(counting_input(), steps=10)
    seen = []

    def read():
        results = estimator.evaluate(counting_input(2))
        assert results["loss"] == results["global_step"]
        seen.append(results["global_step"])

    read()  # compiles
    while_training(estimator, 300, read)
    assert seen[0] == 10
    assert seen == sorted(seen)
    assert len(set(seen)) > 2


def test_predict_in_a_thread_keeps_its_state_while_training_goes_on(tmp_path):
    estimator = counting(tmp_path).train(counting_input(), steps=10)

    def read():
        told = list(estimator.predict(counting_input(3)))
        assert {(example["w"], example["step"]) for example in told} == {(told[0]["step"], told[0]["step"])}
        assert told[0]["step"] >= 10

    read()
    assert while_training(estimator, 300, read)


def test_get_variable_value_in_a_thread_never_fails(tmp_path):
    estimator = counting(tmp_path).train(counting_input(), steps=10)
    values = []

    def read():
        values.append(float(estimator.get_variable_value("params/w")))
        assert estimator.get_variable_names() == ["global_step", "params/w"]

    while_training(estimator, 300, read)
    assert values == sorted(values)
    assert values[0] >= 10


@pytest.mark.parametrize("every", [1, 3])
def test_host_call_finds_the_state_behind_its_own_dispatch(tmp_path, every):
    found = []

    def fn(step):
        step = int(step[0])
        results = estimator.evaluate(counting_input(1))
        found.append((step, int(estimator.get_variable_value("global_step")), results["loss"]))

    def with_host_call(variables, features, mode, step):
        return model_fn(variables, features, mode, step)._replace(host_call=(fn, [step]) if mode == "train" else None)

    estimator = counting(tmp_path, with_host_call, every=every)
    estimator.train(counting_input(), steps=12)
    estimator.train(counting_input(), steps=12)
    assert [step for step, _, _ in found] == list(range(24))
    for step, global_step, loss in found:
        assert loss == global_step
        assert step < global_step <= step + every
    if every == 1:
        assert [global_step for _, global_step, _ in found] == list(range(1, 25))


def test_an_error_while_tracing_leaves_the_trained_state(tmp_path):
    def picky(variables, features, mode, step):
        assert mode != "train" or features["x"].shape[0] == 4, "four rows, please"
        return model_fn(variables, features, mode, step)

    estimator = js.TPUEstimator(
        picky, counting_init, model_dir=tmp_path, config=run_config(save=None), use_tpu=False, eval_batch_size=4
    )

    def input_fn():
        yield from counting_input(5)()
        yield from counting_input(1, rows=3)()

    with pytest.raises(AssertionError, match="four rows, please"):
        estimator.train(input_fn, steps=6)
    assert estimator.get_variable_value("global_step") == 5
    assert estimator.get_variable_value("params/w") == 5
    assert estimator.evaluate(counting_input(1))["loss"] == 5
    estimator.train(counting_input(), steps=2)
    assert estimator.get_variable_value("params/w") == 7
