"""TPUEstimator.evaluate and predict: every example once, on the live state, in one program."""

import functools
import queue
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_models import (
    Net,
    accuracy_fn,
    batches,
    counting_init,
    counting_input,
    counting_model_fn,
    data,
    linear_init,
    linear_logits,
    linear_model_fn,
    net_model_fn,
    run_config,
)

import jaxspec as js
from jaxspec._src.checkpoint import restore
from jaxspec._src.device import program

X, Y = data(rows=200)


def linear(model_dir=None, shards=4, size=64, model_fn=linear_model_fn, init_fn=linear_init, **kwargs):
    return js.TPUEstimator(
        model_fn,
        init_fn,
        model_dir=model_dir,
        config=run_config(save=1000, num_shards=shards),
        train_batch_size=size,
        eval_batch_size=size,
        predict_batch_size=size,
        **kwargs,
    )


def expected(w, b, rows):
    logits = X[:rows] @ w + b
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -log_p[np.arange(rows), Y[:rows]].mean(), np.mean(logits.argmax(-1) == Y[:rows]), logits


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 63, 64, 65, 128, 199])
def test_every_example_counts_once_on_any_number_of_shards(tmp_path, rows):
    estimator = linear(tmp_path, shards=1, size=16).train(js.inputs.numpy_input_fn(X, Y), steps=2)
    w, b = (estimator.get_variable_value(f"params/{name}") for name in "wb")
    loss, accuracy, logits = expected(w, b, rows)
    for shards, size in ((1, 64), (2, 64), (4, 64), (4, 8)):
        other = linear(tmp_path, shards, size)
        result = other.evaluate(functools.partial(batches, X[:rows], Y[:rows], size=size))
        np.testing.assert_allclose(result["loss"], loss, rtol=2e-6)
        assert result["accuracy"] == accuracy
        assert result["global_step"] == 2
        predictions = list(other.predict(functools.partial(_features, rows, size)))
        np.testing.assert_allclose([p["logits"] for p in predictions], logits, rtol=1e-5, atol=1e-6)
    fallback = linear(tmp_path, use_tpu=False).evaluate(lambda: batches(X[:rows], Y[:rows], size=64))
    np.testing.assert_allclose(fallback["loss"], loss, rtol=2e-6)


def _features(rows, size):
    return [x for (x,) in batches(X[:rows], size=size)]


def test_ragged_batches_in_the_middle(tmp_path):
    sizes = [5, 64, 64, 3, 17, 64]
    at = np.cumsum([0, *sizes])
    pieces = [(X[a % 100 : a % 100 + n], Y[a % 100 : a % 100 + n]) for a, n in zip(at, sizes, strict=False)]
    seen = []

    def model_fn(variables, features, labels, mode):
        spec = linear_model_fn(variables, features, labels, mode)
        return spec._replace(host_call=(lambda x: seen.append(x), [features])) if mode == "eval" else spec

    result = linear(tmp_path, model_fn=model_fn).evaluate(lambda: pieces)
    assert [len(x) for x in seen] == sizes
    for got, (want, _) in zip(seen, pieces, strict=True):
        np.testing.assert_array_equal(got, want)
    assert result["global_step"] == 0


@pytest.mark.parametrize("tail", [1, 3, 4, 5, 15])
def test_promise_3_no_filler_and_no_larger_batch(tmp_path, tail):
    """4 shards, batch 16; the 8-shard case of the same test runs in a process of its own."""
    check_tail(tmp_path, shards=4, size=16, tail=tail)


def check_tail(tmp_path, shards, size, tail):
    largest = []
    hosts = []
    rows = size + tail
    x = np.arange(1, rows + 1, dtype=np.float32)

    def model_fn(variables, features, mode):
        largest.append(features.shape[0])
        thrice = jnp.repeat(features, 3) * variables["params"]["w"]
        if mode == js.ModeKeys.PREDICT:
            return js.TPUEstimatorSpec(mode, predictions={"x": features})
        return js.TPUEstimatorSpec(
            mode,
            loss=features.mean(),
            eval_metrics=(
                lambda x, thrice, n: hosts.append((x, thrice, n)) or {"m": js.metrics.mean(x)},
                [features, thrice, features.sum()],
            ),
        )

    estimator = js.TPUEstimator(
        model_fn,
        lambda: {"params": {"w": jnp.float32(2)}},
        model_dir=tmp_path,
        config=run_config(save=1000, num_shards=shards),
        eval_batch_size=size,
        predict_batch_size=size,
    )
    result = estimator.evaluate(lambda: [x[:size], x[size:]])
    np.testing.assert_allclose([result["loss"], result["m"]], x.mean(), rtol=1e-6)
    assert max(largest) == size // shards
    seen, thrice, scalars = (np.concatenate(parts) for parts in zip(*hosts, strict=True))
    np.testing.assert_array_equal(seen, x)
    np.testing.assert_array_equal(thrice, np.repeat(2 * x, 3))
    assert len(hosts) == 2
    per_shard = size // shards
    assert len(scalars) == shards + -(-tail // per_shard)  # one for each shard that had rows
    np.testing.assert_allclose(scalars.sum(), x.sum())
    np.testing.assert_array_equal([p["x"] for p in estimator.predict(lambda: [x[:size], x[size:]])], x)
    assert max(largest) == per_shard


@pytest.mark.slow(reason="a process of its own compiles every program for eight devices")
def test_promise_3_on_eight_shards(tmp_path):
    program = (
        "import os; os.environ.update(JAX_PLATFORMS='cpu', XLA_FLAGS='--xla_force_host_platform_device_count=8');"
        "from test_inference import check_tail; import sys, pathlib;"
        "[check_tail(pathlib.Path(sys.argv[1]) / str(t), 8, 64, t) for t in (1, 7, 8, 9, 63)]; print('done')"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=__file__.rpartition("/")[0],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.stdout == "done\n", ran.stderr[-2000:]


def test_a_filler_shard_that_gives_nan_does_not_count(tmp_path):
    def model_fn(variables, features, mode):
        first = jax.lax.axis_index(js.SHARD_AXIS) == 0
        return js.TPUEstimatorSpec(mode, loss=jnp.where(first, features.mean(), jnp.nan))

    result = linear(tmp_path, size=16, model_fn=model_fn).evaluate(lambda: [np.full(4, 3, np.float32)])
    assert result["loss"] == 3


# the live state


class Reads:
    """Counts checkpoint reads."""

    def __init__(self, monkeypatch):
        self.count = 0
        for name in ("read_variables", "read_state"):
            original = getattr(restore, name)

            def counted(*args, original=original):
                self.count += 1
                return original(*args)

            monkeypatch.setattr(restore, name, counted)


def test_promise_5_after_train_nothing_is_read_and_nothing_compiled_twice(tmp_path, monkeypatch):
    from test_train import _count_compiles

    reads = Reads(monkeypatch)
    traces = []

    def model_fn(variables, features, labels, mode):
        traces.append(mode)
        return linear_model_fn(variables, features, labels, mode)

    estimator = linear(tmp_path, model_fn=model_fn)
    train, test = js.inputs.numpy_input_fn(X, Y), js.inputs.numpy_input_fn(X, Y)
    estimator.train(train, steps=2)
    first = estimator.evaluate(test), list(estimator.predict(test))
    before = list(traces)
    compiles = _count_compiles(
        lambda: (estimator.evaluate(test), list(estimator.predict(test)), estimator.train(train, steps=1))
    )
    assert (reads.count, compiles, traces) == (0, 0, before)
    again = linear(tmp_path)
    assert again.evaluate(test)["global_step"] == 3
    assert reads.count == 1
    assert "train" not in traces[len(before) :]
    assert first[0]["global_step"] == 2


def test_evaluation_from_a_checkpoint_never_traces_train(tmp_path):
    linear(tmp_path).train(js.inputs.numpy_input_fn(X, Y), steps=1)
    traces = []

    def model_fn(variables, features, labels, mode):
        traces.append(mode)
        return linear_model_fn(variables, features, labels, mode)

    linear(tmp_path, model_fn=model_fn).evaluate(js.inputs.numpy_input_fn(X, Y))
    assert set(traces) == {"eval"}


def test_checkpoint_path(tmp_path):
    estimator = js.TPUEstimator(
        counting_model_fn,
        counting_init,
        model_dir=tmp_path,
        train_batch_size=4,
        eval_batch_size=4,
        predict_batch_size=4,
        config=run_config(save=2, every=2),
    )
    estimator.train(counting_input(), steps=5)
    path = str(tmp_path / "model.ckpt-2")
    assert estimator.evaluate(counting_input(1), checkpoint_path=path)["global_step"] == 2
    assert next(estimator.predict(counting_input(1), checkpoint_path=path))["w"] == 2
    assert next(estimator.predict(counting_input(1)))["w"] == 5
    for verb in (estimator.evaluate, estimator.predict):
        with pytest.raises(
            ValueError, match=r"not a valid checkpoint: nowhere/model.ckpt-5. Expected a directory named"
        ):
            verb(counting_input(1), checkpoint_path="nowhere/model.ckpt-5")
    with pytest.raises(ValueError, match=r"model.ckpt-3. Expected .*the steps there are \[0, 2, 4, 5\]"):
        estimator.evaluate(counting_input(1), checkpoint_path=str(tmp_path / "model.ckpt-3"))


def test_a_predict_generator_left_open_while_training_runs_on(tmp_path):
    estimator = js.TPUEstimator(
        counting_model_fn,
        counting_init,
        model_dir=tmp_path,
        train_batch_size=4,
        predict_batch_size=4,
        eval_batch_size=4,
        config=run_config(save=3, every=2),
    )
    estimator.train(counting_input(), steps=3)
    first = estimator.predict(counting_input(500))
    assert next(first)["w"] == 3
    estimator.train(counting_input(), steps=5)
    second = estimator.predict(counting_input(500))
    assert [next(second)["w"], next(first)["w"], next(second)["w"]] == [8, 3, 8]
    estimator.train(counting_input(), steps=2)
    assert estimator.evaluate(counting_input(2))["global_step"] == 10
    assert {p["w"] for p in (next(first) for _ in range(900))} == {3}
    first.close()
    del second
    estimator.train(counting_input(), steps=1)


def test_without_a_checkpoint_fresh_variables_and_the_scaffold_are_used(tmp_path, caplog):
    def model_fn(variables, features, mode):
        scaffold = js.Scaffold(lambda v: jax.tree.map(lambda x: x + 7, v))
        return counting_model_fn(variables, features, mode)._replace(scaffold_fn=lambda: scaffold)

    estimator = js.TPUEstimator(
        model_fn,
        counting_init,
        model_dir=tmp_path,
        train_batch_size=4,
        eval_batch_size=4,
        predict_batch_size=4,
        config=run_config(save=10),
    )
    with caplog.at_level("INFO", "jaxspec"):
        assert next(estimator.predict(counting_input(1)))["w"] == 7
    assert "Could not find trained model in model_dir" in caplog.text
    assert estimator.evaluate(counting_input(1))["global_step"] == 0
    estimator.train(counting_input(), steps=2)
    assert estimator.get_variable_value("params/w") == 9
    # not after a restore
    again = js.TPUEstimator(model_fn, counting_init, model_dir=tmp_path, train_batch_size=4, config=run_config(save=10))
    again.train(counting_input(), steps=1)
    assert again.get_variable_value("params/w") == 10


# predict


def test_predict_keys_and_batches(tmp_path):
    def make(**kwargs):
        return net_estimator.predict(lambda: [X[:16], X[16:21]], **kwargs)

    net_estimator = js.TPUEstimator(
        net_model_fn, Net(), model_dir=tmp_path, params={}, predict_batch_size=16, config=run_config()
    )
    assert [set(p) for p in make(predict_keys=["row", "unknown"])] == [{"row"}] * 21
    assert [set(p) for p in make(predict_keys="row")] == [{"row"}] * 21
    sizes = [p["logits"].shape for p in make(yield_single_examples=False)]
    assert sizes == [(16, 3), (5, 3)]
    np.testing.assert_array_equal([p["row"] for p in make()], X[:21, 0])
    with pytest.raises(
        ValueError, match=r"Expected to run at least one output from \['logits', 'row'\], provided \['x'\]"
    ):
        next(make(predict_keys=["x"]))


def test_predictions_may_be_one_array_and_must_agree_in_length(tmp_path):
    def bare(variables, features, mode):
        return js.TPUEstimatorSpec(mode, predictions=features * 2)

    def unequal(variables, features, mode):
        return js.TPUEstimatorSpec(mode, predictions={"x": features, "sum": features.sum()})

    estimator = linear(tmp_path, size=8, model_fn=bare)
    np.testing.assert_array_equal(list(estimator.predict(lambda: [X[:6]])), X[:6] * 2)
    with pytest.raises(ValueError, match="predict_keys argument is not valid in case of non-dict predictions"):
        next(estimator.predict(lambda: [X[:6]], predict_keys=["a"]))
    estimator = linear(tmp_path, size=8, model_fn=unequal)
    with pytest.raises(
        ValueError,
        match="Batch length of predictions should be same. x has different batch length than others: {'sum': 4, 'x': 8}",
    ):
        next(estimator.predict(lambda: [X[:8]]))
    whole = next(estimator.predict(lambda: [X[:8]], yield_single_examples=False))
    assert whole["sum"].shape == (4,)


def test_predict_checks_its_arguments_at_once_and_an_empty_input_yields_nothing(tmp_path):
    estimator = linear(tmp_path)
    with pytest.raises(ValueError, match="not expected args"):
        estimator.predict(lambda feature: None)
    assert list(estimator.predict(list)) == []


def test_labels_are_none_in_predict(tmp_path):
    def model_fn(variables, features, labels, mode):
        assert labels is None
        return js.TPUEstimatorSpec(mode, predictions=features)

    assert len(list(linear(tmp_path, model_fn=model_fn).predict(js.inputs.numpy_input_fn(X[:5], Y[:5])))) == 5


def test_an_input_that_waits_for_the_previous_prediction(tmp_path):
    """The pattern that serves requests through predict: the generator yields what arrives meanwhile."""
    requests = queue.Queue()

    def input_fn():
        while (request := requests.get()) is not None:
            yield request

    def model_fn(features, mode):
        return js.TPUEstimatorSpec(mode, predictions=features)

    predictions = linear(tmp_path, size=4, model_fn=model_fn).predict(input_fn)
    for i in range(3):
        requests.put(np.full(4, i, np.float32))
        assert [next(predictions) for _ in range(4)] == [i] * 4
    requests.put(None)
    assert list(predictions) == []


def test_a_half_precision_loss(tmp_path):
    def model_fn(features, mode):
        return js.TPUEstimatorSpec(mode, loss=jnp.float16(100) + 0 * features.mean().astype(jnp.float16))

    assert linear(tmp_path, size=4096, model_fn=model_fn).evaluate(lambda: [np.ones(4096, np.float32)])["loss"] == 100


# metrics and host functions in evaluate


def test_metric_fn_gets_the_whole_batch_by_position_or_by_name(tmp_path):
    shapes = []

    def by_name(labels, logits):
        shapes.append((labels.shape, logits.shape, type(labels)))
        return accuracy_fn(labels, logits)

    def model_fn(variables, features, labels, mode):
        spec = linear_model_fn(variables, features, labels, mode)
        return spec._replace(eval_metrics=(by_name, {"logits": linear_logits(variables, features), "labels": labels}))

    estimator = linear(tmp_path, model_fn=model_fn)
    assert estimator.evaluate(js.inputs.numpy_input_fn(X, Y)) == linear(tmp_path).evaluate(
        js.inputs.numpy_input_fn(X, Y)
    )
    assert shapes == [((n,), (n, 3), np.ndarray) for n in (64, 64, 64, 8)]


def test_a_plain_number_is_a_mean_weighted_by_examples(tmp_path):
    def model_fn(variables, features, mode):
        return js.TPUEstimatorSpec(
            mode, loss=features.mean(), eval_metrics=(lambda x: {"m": x.mean(), "n": js.metrics.mean(x)}, [features])
        )

    x = np.arange(10, dtype=np.float32)
    result = linear(tmp_path, size=8, model_fn=model_fn).evaluate(lambda: [x[:8], x[8:]])
    np.testing.assert_allclose([result["m"], result["n"], result["loss"]], 4.5)


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("size", [4, 64])
def test_metrics_do_not_depend_on_shards_or_batch_size(tmp_path, shards, size):
    def metric_fn(labels, logits, weights):
        binary = labels == 1
        scores = np.exp(logits[:, 1]) / np.exp(logits).sum(-1)
        return {
            "auc": js.metrics.auc(binary, scores),
            "recall": js.metrics.recall(binary, scores > 0.3, weights=weights),
            "k": js.metrics.precision_at_k(labels[:, None].astype(np.int64), logits, 2),
            "mean": js.metrics.mean(logits),
        }

    def model_fn(variables, features, labels, mode):
        logits = linear_logits(variables, features)
        spec = linear_model_fn(variables, features, labels, mode)
        return spec._replace(eval_metrics=(metric_fn, [labels, logits, jnp.abs(features[:, 0])]))

    def run(shards, size, use_tpu=True):
        return linear(tmp_path, shards, size, model_fn=model_fn, use_tpu=use_tpu).evaluate(
            js.inputs.numpy_input_fn(X[:150], Y[:150])
        )

    expected = run(1, 150, use_tpu=False)
    got = run(shards, size)
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-5)


@pytest.mark.parametrize(
    ("returned", "error", "text"),
    [
        ({"loss": js.metrics.mean(np.ones(1))}, ValueError, 'Metric with name "loss" is not allowed'),
        ({"global_step": js.metrics.mean(np.ones(1))}, ValueError, 'Metric with name "global_step" is not allowed'),
        ({"a": (1.0, 2.0)}, TypeError, "a"),
        (3, TypeError, "metric_fn must return a dict"),
    ],
)
def test_what_metric_fn_may_not_return(tmp_path, returned, error, text):
    def model_fn(variables, features, mode):
        return js.TPUEstimatorSpec(mode, loss=features.mean(), eval_metrics=(lambda x: returned, [features]))

    with pytest.raises(error, match=text):
        linear(tmp_path, model_fn=model_fn).evaluate(lambda: [X[:4]])


def test_an_exception_in_metric_fn_is_its_own_and_says_where(tmp_path):
    def model_fn(variables, features, mode):
        return js.TPUEstimatorSpec(mode, loss=features.mean(), eval_metrics=(lambda x: 1 / 0, [features]))

    estimator = linear(tmp_path, model_fn=model_fn)
    with pytest.raises(ZeroDivisionError) as caught:
        estimator.evaluate(lambda: [X[:64], X[:4]])
    assert "raised by metric_fn" in caught.value.__notes__[0]
    assert caught.value.__notes__[1] == "in evaluation, at batch 0 (counted from 0)"


def test_steps_limit_the_batches(tmp_path):
    result = js.TPUEstimator(
        counting_model_fn, counting_init, model_dir=tmp_path, eval_batch_size=4, config=run_config()
    ).evaluate(counting_input(), steps=3)
    assert result["mean_x"] == 1


def test_evaluation_results_are_written(tmp_path):
    estimator = linear(tmp_path)
    estimator.train(js.inputs.numpy_input_fn(X, Y), steps=1)
    result = estimator.evaluate(js.inputs.numpy_input_fn(X, Y), name="dev")
    events = EventAccumulator(estimator.eval_dir("dev")).Reload()
    assert estimator.eval_dir("dev") == str(tmp_path / "eval_dev")
    assert set(events.Tags()["scalars"]) == {"loss", "accuracy"}
    (event,) = events.Scalars("accuracy")
    assert event.step == 1
    np.testing.assert_allclose(event.value, result["accuracy"], rtol=1e-6)


def test_vector_and_matrix_metrics_come_back_as_arrays_and_are_shown(tmp_path, caplog):
    def metric_fn(labels, logits):
        return {
            "at": js.metrics.recall_at_thresholds(
                labels == 1, np.exp(logits[:, 1]) / np.exp(logits).sum(-1), [0.2, 0.5]
            ),
            "confusion": js.metrics.confusion_matrix(labels, np.argmax(logits, -1), num_classes=3),
            "large": js.metrics.mean_tensor(np.arange(100.0)),
            "figure": js.metrics.collect(lambda labels: "a figure", labels=labels),
        }

    def model_fn(variables, features, labels, mode):
        logits = linear_logits(variables, features)
        return js.TPUEstimatorSpec(mode, loss=logits.mean(), eval_metrics=(metric_fn, [labels, logits]))

    estimator = linear(tmp_path, model_fn=model_fn)
    result = estimator.evaluate(js.inputs.numpy_input_fn(X, Y))
    assert [np.shape(result[name]) for name in ("at", "confusion", "large")] == [(2,), (3, 3), (100,)]
    assert result["confusion"].sum() == 200
    assert "Skipping summary for figure" in caplog.text
    events = EventAccumulator(estimator.eval_dir()).Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "at/0", "at/1"}
    assert events.Tags()["histograms"] == ["large"]
    (table,) = events.Tensors("confusion/text_summary")
    assert b"| **2** |" in table.tensor_proto.string_val[0]


def test_summary_host_call_writes_in_training_only(tmp_path):
    def model_fn(variables, features, labels, mode):
        spec = linear_model_fn(variables, features, labels, mode)
        if mode == js.ModeKeys.PREDICT:
            return spec
        return spec._replace(host_call=js.summary.host_call(loss=spec.loss, batch_mean=features.mean()))

    estimator = linear(tmp_path, model_fn=model_fn)
    estimator.train(js.inputs.numpy_input_fn(X, Y), steps=3)
    estimator.evaluate(js.inputs.numpy_input_fn(X, Y))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [e.step for e in events.Scalars("batch_mean")] == [0, 1, 2]
    np.testing.assert_allclose(
        [e.value for e in events.Scalars("batch_mean")], [X[i : i + 64].mean() for i in (0, 64, 128)], rtol=1e-4
    )
    assert "batch_mean" not in EventAccumulator(estimator.eval_dir()).Reload().Tags()["scalars"]


# one path for all


@pytest.mark.parametrize("use_tpu", [True, False])
def test_all_verbs_pass_through_one_mapping(tmp_path, monkeypatch, use_tpu):
    mapped, called, original_map = [], [], program.map_over_devices

    def recorder(fn, devices, **kwargs):
        mapping = original_map(fn, devices, **kwargs)

        def run(*args):
            mapped.append(len(devices))
            return mapping(*args)

        return run

    monkeypatch.setattr(program, "map_over_devices", recorder)

    def model_fn(variables, features, mode):
        spec = counting_model_fn(variables, features, mode)
        return spec if mode == js.ModeKeys.PREDICT else spec._replace(host_call=(called.append, [features["x"]]))

    estimator = js.TPUEstimator(
        model_fn,
        counting_init,
        model_dir=tmp_path,
        use_tpu=use_tpu,
        train_batch_size=4,
        eval_batch_size=4,
        predict_batch_size=4,
        config=run_config(save=10),
    )
    devices = 4 if use_tpu else 1
    for run, count in (
        (lambda: estimator.train(counting_input(), steps=3), 3),
        (lambda: estimator.evaluate(counting_input(2)), 2),
        (lambda: list(estimator.predict(counting_input(2))), 0),
    ):
        mapped.clear()
        called.clear()
        run()
        assert mapped
        assert set(mapped) == {devices}
        assert [x.shape for x in called] == [(4,)] * count


@pytest.mark.parametrize("tensors", [list, dict])
def test_a_run_calls_host_functions_as_as_estimator_spec_does(tmp_path, tensors):
    """One batch on four shards: the same metrics, and the same arrays for host_call, as from the gathered spec."""
    seen = []

    def host_call(labels, loss):
        seen.append((labels, loss))

    def model_fn(variables, features, labels, mode):
        spec = linear_model_fn(variables, features, labels, mode)
        if mode == js.ModeKeys.PREDICT:
            return spec
        given = {"labels": labels, "loss": spec.loss}
        given = given if tensors is dict else list(given.values())
        return spec._replace(host_call=(host_call, given), eval_metrics=(metric_fn, given))

    def metric_fn(labels, loss):
        return {"labels": js.metrics.mean(labels), "loss_of_shards": js.metrics.mean(loss)}

    x, y = data(8)
    state = js.create_train_state(model_fn, linear_init, jax.random.key(0), x, y)
    step = js.replicate(js.make_eval_step(model_fn))
    spec = js.gather(step(state, *js.shard((x, y), 4), np.zeros(4, np.int32))).as_estimator_spec()
    (hook,) = spec.evaluation_hooks
    hook.after_run(None, None)
    by_hand = {name: metric.compute() for name, metric in spec.eval_metric_ops.items()}

    estimator = js.TPUEstimator(model_fn, linear_init, model_dir=tmp_path, eval_batch_size=8)
    results = estimator.evaluate(js.inputs.numpy_input_fn(x, y))
    assert {name: results[name] for name in by_hand} == by_hand
    (labels, loss), (labels_of_run, loss_of_run) = seen
    np.testing.assert_array_equal(labels, labels_of_run)
    np.testing.assert_array_equal(loss, loss_of_run)


def test_ema_weights_in_evaluation_equal_numpy(tmp_path):
    ema = js.ExponentialMovingAverage(0.8)

    def model_fn(variables, features, labels, mode, step):
        if mode == js.ModeKeys.EVAL:
            variables = ema.apply(variables)
        logits = linear_logits(variables, features)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        w = variables["params"]["w"]
        return js.TPUEstimatorSpec(
            mode,
            loss=loss,
            train_op=js.minimize(optax.sgd(0.5), after=ema.update()),
            eval_metrics=(lambda w: {"w": js.metrics.mean_tensor(w)}, [w]),
            host_call=(lambda w: history.append(w[:4]), [w]),
        )

    history = []
    estimator = linear(tmp_path, model_fn=model_fn, init_fn=ema.init(linear_init))
    estimator.train(js.inputs.numpy_input_fn(X, Y, num_epochs=None), steps=6)
    history.append(estimator.get_variable_value("params/w"))
    average = history[0]
    for w in history[1:]:
        average = 0.8 * average + 0.2 * w
    result = estimator.evaluate(js.inputs.numpy_input_fn(X[:64], Y[:64]))
    np.testing.assert_allclose(result["w"][:4], average, rtol=1e-5)
    np.testing.assert_allclose(estimator.get_variable_value("ema/params/w"), average, rtol=1e-5)
