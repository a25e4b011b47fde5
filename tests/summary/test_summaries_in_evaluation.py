"""What host functions write with jaxspec.summary while an evaluation runs."""

import threading

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import counting_init, counting_input, counting_model_fn, run_config

import jaxspec as js
from jaxspec.hooks import read_eval_metrics


def writing_model_fn(variables, features, mode):
    """The counting model; metric_fn and host_call write the mean of the batch, `summary.host_call`'s kind apart."""
    spec = counting_model_fn(variables, features, mode)
    if mode == js.ModeKeys.PREDICT:
        return spec

    def metric_fn(x):
        js.summary.scalar("of_metric_fn", x)
        return {"mean_x": js.metrics.mean(x)}

    def host_call(x):
        js.summary.scalar("of_host_call", x)
        js.summary.text("words", "text")

    return spec._replace(eval_metrics=(metric_fn, [features["x"]]), host_call=(host_call, [features["x"]]))


def make_estimator(model_dir, model_fn=writing_model_fn, **kwargs):
    config = run_config(kwargs.pop("save", None), num_shards=2, **kwargs)
    return js.TPUEstimator(
        model_fn, counting_init, model_dir=model_dir, config=config, train_batch_size=4, eval_batch_size=4
    )


@pytest.mark.parametrize("name", [None, "test"])
def test_they_reach_the_directory_of_the_evaluation_at_the_evaluated_step(tmp_path, name):
    estimator = make_estimator(tmp_path)
    estimator.train(counting_input(), steps=3)
    estimator.evaluate(counting_input(1), name=name)
    estimator.train(counting_input(), steps=2)
    estimator.evaluate(counting_input(1), name=name)
    found = read_eval_metrics(estimator.eval_dir(name))
    assert list(found) == [3, 5]
    assert all({"of_metric_fn", "of_host_call"} <= metrics.keys() for metrics in found.values())


def test_of_several_batches_the_last_one_counts(tmp_path):
    estimator = make_estimator(tmp_path)
    estimator.evaluate(counting_input(4))
    assert read_eval_metrics(estimator.eval_dir()) == {
        0: {"of_metric_fn": 3.0, "of_host_call": 3.0, "loss": 1.5, "mean_x": 1.5}
    }


def test_a_result_of_the_same_name_counts_more_than_what_a_batch_wrote(tmp_path):
    def model_fn(variables, features, mode):
        def host_call(x):
            js.summary.scalar("loss", x)

        spec = counting_model_fn(variables, features, mode)
        return spec._replace(host_call=(host_call, [features["x"]]))

    estimator = make_estimator(tmp_path, model_fn)
    estimator.evaluate(counting_input(4))
    assert read_eval_metrics(estimator.eval_dir())[0]["loss"] == 1.5


def test_training_writes_to_its_own_directory_alone(tmp_path):
    estimator = make_estimator(tmp_path)
    estimator.train(counting_input(), steps=2)
    found = read_eval_metrics(tmp_path)
    assert {step: metrics["of_host_call"] for step, metrics in found.items() if "of_host_call" in metrics} == {
        0: 0,
        1: 1,
    }
    estimator.evaluate(counting_input(1))
    assert read_eval_metrics(tmp_path) == found


def test_summary_host_call_still_writes_in_training_alone(tmp_path):
    def model_fn(variables, features, mode):
        spec = counting_model_fn(variables, features, mode)
        return spec._replace(host_call=js.summary.host_call(shown=features["x"].mean()))

    estimator = make_estimator(tmp_path, model_fn)
    estimator.train(counting_input(), steps=2)
    estimator.evaluate(counting_input(2))
    assert {metrics["shown"] for metrics in read_eval_metrics(tmp_path).values() if "shown" in metrics} == {0.0, 1.0}
    assert set(read_eval_metrics(estimator.eval_dir())[2]) == {"loss", "mean_x"}


def test_those_of_train_and_evaluate_are_at_the_step_of_each_checkpoint(tmp_path):
    estimator = make_estimator(tmp_path, save=2)
    js.train_and_evaluate(
        estimator,
        js.TrainSpec(counting_input(), max_steps=4),
        js.EvalSpec(counting_input(2), steps=None, throttle_secs=0, start_delay_secs=0),
    )
    found = read_eval_metrics(estimator.eval_dir())
    assert {step: metrics["of_metric_fn"] for step, metrics in found.items()} == {2: 1.0, 4: 1.0}


def test_two_evaluations_in_threads_write_apart(tmp_path):
    def model_fn(variables, features, mode):
        def host_call(x):
            barrier.wait(30)
            js.summary.scalar("x", x)

        return counting_model_fn(variables, features, mode)._replace(host_call=(host_call, [features["x"]]))

    barrier = threading.Barrier(2)
    estimator = make_estimator(tmp_path, model_fn)

    def evaluate(name, value):
        estimator.evaluate(lambda: [{"x": np.full(4, value, np.float32)}] * 2, name=name)

    threads = [threading.Thread(target=evaluate, args=pair) for pair in (("one", 1.0), ("two", 2.0))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [read_eval_metrics(estimator.eval_dir(name))[0]["x"] for name in ("one", "two")] == [1.0, 2.0]


def test_a_step_of_the_users_own_is_kept(tmp_path):
    def model_fn(variables, features, mode, step):
        def host_call(x, step):
            js.summary.scalar("at_hundred", x, step=100 + step)

        spec = counting_model_fn(variables, features, mode)
        tensors = [features["x"], jnp.broadcast_to(step, (1,))]
        return spec._replace(host_call=(host_call, tensors))

    estimator = make_estimator(tmp_path, model_fn)
    estimator.evaluate(counting_input(1))
    assert read_eval_metrics(estimator.eval_dir())[100] == {"at_hundred": 0.0}
