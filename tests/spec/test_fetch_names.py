"""A fetch name stands for one array."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_models import batches, data, run_config

import jaxspec as js

X, Y = data(rows=8)


def estimator(tmp_path, edit):
    def model_fn(variables, features, labels, mode, step):
        out = features @ variables["params"]["w"]
        if mode == "infer":
            return js.TPUEstimatorSpec(mode, predictions={"out": out})
        loss = ((out - labels) ** 2).mean()
        spec = js.TPUEstimatorSpec(mode, loss=loss, train_op=js.minimize(optax.sgd(0.1)), predictions={"out": out})
        return spec._replace(**edit(dict(loss=loss, labels=labels, out=out, step=step)))

    sizes = dict(train_batch_size=4, eval_batch_size=4, predict_batch_size=4)
    return js.TPUEstimator(
        model_fn, lambda: {"params": {"w": jnp.ones(4)}}, model_dir=tmp_path, config=run_config(num_shards=2), **sizes
    )


def metrics(**tensors):
    return (lambda **given: {}, tensors)


def call(**tensors):
    return (lambda **given: None, tensors)


REFUSED = {
    "two dicts": (
        "evaluate",
        lambda v: dict(eval_metrics=metrics(score=v["labels"]), host_call=call(score=v["out"])),
        r"fetch name 'score': one of eval_metrics \(int32\[2\]\), one of host_call \(float32\[2\]\).*Rename the key in host_call",
    ),
    "loss of host_call": (
        "train",
        lambda v: dict(host_call=call(loss=v["loss"] + 1)),
        r"fetch name 'loss': one of host_call .*, one of loss .*Rename the key in host_call.*the loss itself",
    ),
    "loss of eval_metrics": (
        "evaluate",
        lambda v: dict(eval_metrics=metrics(loss=v["out"])),
        r"'loss': one of eval_metrics",
    ),
    "loss of eval_metrics beside summaries": (
        "evaluate",
        lambda v: dict(eval_metrics=metrics(loss=v["out"]), host_call=js.summary.host_call(loss=v["loss"] + 1000)),
        r"'loss': one of eval_metrics .*, one of loss",
    ),
    "step": (
        "train",
        lambda v: dict(host_call=call(global_step=v["step"] + 1)),
        r"'global_step': one of the global step \(int32\[\]\), one of host_call .*`step` itself",
    ),
    "predictions": (
        "evaluate",
        lambda v: dict(eval_metrics=metrics(predictions={"out": v["labels"]})),
        r"'predictions/out': one of eval_metrics .*one of predictions",
    ),
    "fetches beside host_call": (
        "train",
        lambda v: dict(host_call=js.fetches(call(score=v["labels"]), score=v["out"])),
        r"'score': one of fetches \(float32\[2\]\), one of host_call",
    ),
    "loss of fetches": (
        "train",
        lambda v: dict(host_call=js.fetches(loss=v["out"])),
        r"'loss': one of fetches .*, one of loss .*Rename the key in fetches",
    ),
    "paths": (
        "train",
        lambda v: dict(host_call=call(**{"a/b": v["out"], "a": {"b": v["labels"]}})),
        r"'a/b': one of host_call",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_name_of_two_arrays_is_refused_and_both_are_named(tmp_path, case):
    verb, edit, text = REFUSED[case]
    with pytest.raises(ValueError, match=text):
        getattr(estimator(tmp_path, edit), verb)(lambda: batches(X, Y, size=4))


def test_the_same_array_may_have_a_name_twice(tmp_path):
    def edit(v):
        shared = dict(
            labels=v["labels"], loss=v["loss"], global_step=v["step"], predictions={"out": v["out"]}, factor=0.5
        )
        return dict(eval_metrics=metrics(**shared), host_call=call(**shared))

    final = js.hooks.FinalOpsHook(["labels", "predictions/out"])
    made = estimator(tmp_path, edit)
    made.evaluate(lambda: batches(X, Y, size=4), hooks=[final])
    np.testing.assert_array_equal(final.final_ops_values[0], Y[4:])
    np.testing.assert_allclose(final.final_ops_values[1], X[4:].sum(-1), rtol=1e-5)
    made.train(lambda: batches(X, Y, size=4))


def test_what_does_not_leave_the_device_takes_no_name(tmp_path):
    """In training eval_metrics are not sent to the host."""

    def edit(v):
        return dict(eval_metrics=metrics(score=v["labels"]), host_call=call(score=v["out"]))

    estimator(tmp_path, edit).train(lambda: batches(X, Y, size=4))


def test_the_tags_of_summaries_are_no_fetch_names(tmp_path):
    final = js.hooks.FinalOpsHook("loss")
    made = estimator(tmp_path, lambda v: dict(host_call=js.summary.host_call(loss=v["loss"] + 1000)))
    made.train(lambda: batches(X[:4], Y[:4], size=4), hooks=[final])
    np.testing.assert_allclose(final.final_ops_values, ((X[:4].sum(-1) - Y[:4]) ** 2).mean(), rtol=1e-5)
    assert js.hooks.read_eval_metrics(tmp_path)[0]["loss"] > 1000


class Asking(js.hooks.SessionRunHook):
    """Asks for fetch names after each loop."""

    def __init__(self, names):
        self.names, self.values = names, []

    def before_run(self, run_context):
        return js.hooks.SessionRunArgs(self.names)

    def after_run(self, run_context, run_values):
        self.values.append(run_values.results)


def test_fetches_are_values_for_hooks_the_log_and_tensorboard_without_a_host_call(tmp_path, caplog):
    caplog.set_level("INFO", "jaxspec")
    made = estimator(tmp_path, lambda v: dict(host_call=js.fetches(rate=0.1 * v["loss"], rows=v["labels"])))
    asking = Asking(["rate", "loss", "rows"])
    hooks = [
        asking,
        js.hooks.LoggingTensorHook({"the rate": "rate"}, every_n_iter=1),
        js.hooks.SummarySaverHook(save_steps=1, summary_op="rate"),
    ]
    made.train(lambda: batches(X, Y, size=4), steps=1, hooks=hooks)
    ((rate, loss, rows),) = asking.values
    np.testing.assert_allclose(rate, 0.1 * loss, rtol=1e-6)
    np.testing.assert_array_equal(rows, Y[:4])
    assert any("the rate = " in line for line in caplog.messages)
    np.testing.assert_allclose(js.hooks.read_eval_metrics(tmp_path)[1]["rate"], rate)
    asking = Asking("rows")
    made.evaluate(lambda: batches(X, Y, size=4), hooks=[asking])
    np.testing.assert_array_equal(asking.values, Y.reshape(2, 4))


@pytest.mark.parametrize("as_dict", [True, False])
def test_fetches_beside_a_host_call(tmp_path, as_dict):
    calls, asking = [], Asking(["out", "loss"])

    def edit(v):
        tensors = {"labels": v["labels"], "loss": v["loss"]}
        tensors = tensors if as_dict else list(tensors.values())
        return dict(host_call=js.fetches((lambda labels, loss: calls.append(labels.tolist()), tensors), out=v["out"]))

    made = estimator(tmp_path, edit)
    made.train(lambda: batches(X, Y, size=4), hooks=[asking])
    made.evaluate(lambda: batches(X, Y, size=4))
    assert calls == [Y[:4].tolist(), Y[4:].tolist()] * 2
    assert asking.values[-1][0].shape == (4,)


def test_fetches_beside_summaries_leave_their_tags(tmp_path):
    summaries = js.summary.host_call
    made = estimator(tmp_path, lambda v: dict(host_call=js.fetches(summaries(loss=v["loss"] + 1000), out=v["out"])))
    asking = Asking("loss")
    made.train(lambda: batches(X[:4], Y[:4], size=4), hooks=[asking])
    assert asking.values[0] < 1000 < js.hooks.read_eval_metrics(tmp_path)[0]["loss"]


def test_fetches_alone_are_nothing_to_call_at_each_step(tmp_path, monkeypatch):
    def called(*args):
        raise AssertionError("a host_call")

    monkeypatch.setattr("jaxspec._src.run.host_calls.call_host_function", called)
    made = estimator(tmp_path, lambda v: dict(host_call=js.fetches(out=v["out"])))
    made.train(lambda: batches(X, Y, size=4), hooks=[asking := Asking("out")])
    assert len(asking.values) == 1


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_fetches_beside_a_host_call_are_copied_to_the_host_only_for_a_hook(tmp_path, monkeypatch, verb):
    copied, device_get = [], jax.device_get

    def counting(tree):
        copied.extend(leaf.shape[-1:] for leaf in jax.tree.leaves(tree))
        return device_get(tree)

    def edit(v):
        return dict(host_call=js.fetches((lambda labels: None, [v["labels"]]), wide=jnp.ones((2, 77)) * v["loss"]))

    made = estimator(tmp_path, edit)
    monkeypatch.setattr(jax, "device_get", counting)
    getattr(made, verb)(lambda: batches(X, Y, size=4))
    assert (2,) in copied  # labels of a shard
    assert (77,) not in copied
    getattr(made, verb)(lambda: batches(X, Y, size=4), hooks=[asking := Asking("wide")])
    assert (77,) in copied
    assert asking.values[0].shape == (4, 77)


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_numbers_are_fetched_without_jit_too(tmp_path, verb):
    def model_fn(variables, features, mode):
        loss = (features @ variables["params"]["w"]).mean()
        host_call = js.fetches((lambda factor: None, [2.0]), rate=0.5)
        return js.TPUEstimatorSpec(mode, loss=loss, train_op=js.minimize(optax.sgd(0.1)), host_call=host_call)

    init_fn = lambda: {"params": {"w": jnp.ones(4)}}  # noqa: E731
    made = js.TPUEstimator(model_fn, init_fn, model_dir=tmp_path, use_tpu=False)
    with jax.disable_jit():
        getattr(made, verb)(lambda: [X], hooks=[asking := Asking("rate")])
    assert asking.values == [np.float32(0.5)]
    assert asking.values[0].dtype == np.float32


def test_fetches_by_hand():
    calls = []
    pair = js.fetches((calls.append, [np.ones(2)]), x=np.zeros(2))
    hooks = js.TPUEstimatorSpec("eval", loss=np.float32(0), host_call=pair).as_estimator_spec().evaluation_hooks
    hooks[0].after_run(None, None)
    assert [call.tolist() for call in calls] == [[1, 1]]


def test_fetches_of_fetches_have_the_names_of_both(tmp_path):
    calls, asking = [], Asking(["out", "twice"])

    def edit(v):
        named = js.fetches((lambda labels: calls.append(labels), [v["labels"]]), out=v["out"])
        return dict(host_call=js.fetches(named, twice=2 * v["out"]))

    estimator(tmp_path, edit).train(lambda: batches(X, Y, size=4), steps=1, hooks=[asking])
    np.testing.assert_array_equal(calls, [Y[:4]])
    ((out, twice),) = asking.values
    np.testing.assert_array_equal(twice, 2 * out)
    with pytest.raises(ValueError, match=r"fetches: \['a'\] are names in the fetches that are passed, too"):
        js.fetches(js.fetches(a=1.0, b=2.0), a=3.0)


def test_in_predict_an_unknown_name_is_to_be_put_among_the_predictions(tmp_path):
    made = estimator(tmp_path, lambda v: dict(host_call=js.fetches(out=v["out"])))
    predictions = made.predict(lambda: batches(X, Y, size=4), hooks=[Asking("out")])
    with pytest.raises(ValueError, match=r"unknown fetch 'out'.*Give a tensor a name: predictions=\{'name': tensor\}"):
        next(predictions)


def test_bad_fetches_are_refused():
    with pytest.raises(TypeError, match=r"fetches: a is a list; expected an array or a number.*fetches\(name=array\)"):
        js.fetches(a=[1, 2])
    with pytest.raises(TypeError, match=r"fetches: key is key<fry>\[\]: typed random keys cannot.*key_data\(key\)"):
        js.fetches(key=jax.random.key(0))
    with pytest.raises(TypeError, match=r"host_call\[1\]\['key'\] is key<fry>\[\]: typed random keys cannot"):
        js.fetches((lambda key: None, {"key": jax.random.key(0)}))
    with pytest.raises(ValueError, match=r"host_call should have two elements, given 1"):
        js.fetches((print,))
    with pytest.raises(TypeError, match=r"host_call: the tensors do not match the function's arguments"):
        js.fetches((lambda a: None, {"b": np.zeros(2)}))
    with pytest.raises(RuntimeError, match=r"length of tensors 2 does not match"):
        js.fetches((lambda a: None, [np.zeros(2)] * 2), x=1.0)
