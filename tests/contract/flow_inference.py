"""Scenarios of evaluate and predict."""

import contract_models
import jax.numpy as jnp
import numpy as np
import optax
from flow_registry import scenario

import jaxspec as js


def evaluate(run, estimator, label, *args, count=None, last=None, logged=False, **kwargs):
    """Writes down one call of evaluate over the counting input."""
    run.call(label, lambda: estimator.evaluate(run.input(count, last=last, logged=logged), *args, **kwargs))


def eval_events(run, estimator, label="eval events"):
    """Writes down what the evaluations without a name have written."""
    run.data(label, run.scalars(estimator.eval_dir()))


@scenario("evaluate/no_checkpoint")
def no_checkpoint(run, k):
    estimator = run.estimator()
    evaluate(run, estimator, "evaluate(steps=k)", steps=k, logged=True)
    run.state(estimator)
    eval_events(run, estimator)


@scenario("evaluate/names_and_events")
def names_and_events(run, a, batches):
    estimator = run.estimator()
    estimator.train(run.input(logged=False), steps=a)
    evaluate(run, estimator, "evaluate()", count=batches)
    evaluate(run, estimator, "evaluate(name='other')", count=batches, name="other")
    evaluate(run, estimator, "evaluate(name='')", count=batches, name="")
    evaluate(run, estimator, "evaluate(name='a/b')", count=batches, name="a/b")
    evaluate(run, estimator, "evaluate() again, same step", count=batches)
    estimator.train(run.input(logged=False), steps=1)
    evaluate(run, estimator, "evaluate() one step later", count=batches)
    run.state(estimator)
    for name in (None, "other", "a/b"):
        run.data(f"events of eval_dir({name!r})", run.scalars(estimator.eval_dir(name)))


@scenario("evaluate/steps")
def steps(run, batches, last):
    estimator, recorded = run.estimator(), run.recorded.events[0]["returned"]
    estimator.train(run.input(logged=False), steps=int(recorded["global_step"]))
    for (steps,) in run.recorded.numbers("evaluate(steps={}) over " + f"{batches} batches, "):
        label = f"evaluate(steps={steps}) over {batches} batches, the last with {last} rows"
        evaluate(run, estimator, label, count=batches, last=last, steps=steps)
    evaluate(run, estimator, "evaluate(steps=0)", count=batches, steps=0)
    evaluate(run, estimator, "evaluate(steps=-1)", count=batches, steps=-1)
    evaluate(run, estimator, "evaluate(steps='2')", count=batches, steps="2")
    evaluate(run, estimator, "evaluate(hooks=[object])", count=batches, hooks=["no hook"])
    evaluate(run, estimator, "evaluate() over 0 batches", count=0)
    steps = run.recorded.number("evaluate(steps={}) over 0 batches")
    evaluate(run, estimator, f"evaluate(steps={steps}) over 0 batches", count=0, steps=steps)


@scenario("evaluate/checkpoint_path")
def checkpoint_path(run, a, save):
    estimator = run.estimator(save_checkpoints_steps=save, keep_checkpoint_max=None)
    estimator.train(run.input(logged=False), steps=a)

    def of_step(step):
        return f"{estimator.model_dir}/model.ckpt-{step}"

    label, count = "evaluate(checkpoint_path=the one of step save)", run.recorded.batches_evaluated()
    evaluate(run, estimator, label, count=count, checkpoint_path=of_step(save))
    evaluate(run, estimator, "evaluate(checkpoint_path=the one of step 0)", count=count, checkpoint_path=of_step(0))
    evaluate(run, estimator, "evaluate()", count=count)
    evaluate(run, estimator, "evaluate(checkpoint_path=one that is not there)", checkpoint_path=of_step(999))
    eval_events(run, estimator)
    run.call(
        "predict(checkpoint_path=the one of step save)",
        lambda: next(estimator.predict(run.input(1, logged=False), checkpoint_path=of_step(save))),
    )


class Constant:
    """A metric that is always the same."""

    def __init__(self, value):
        self._value = value

    def merge(self, other):
        return self

    def compute(self):
        return self._value


VARIED = {
    "vector": np.array([1, 2], np.float32),
    "double": np.float64(1),
    "int": np.int32(3),
    "bool": np.bool_(True),
    "long": np.int64(4),
    "text": "abc",
}


@scenario("evaluate/metrics")
def metrics(run, batches):
    def with_metrics(metric_fn):
        return run.model(eval_metrics=lambda x: None if metric_fn is None else (metric_fn, [x]), losses=False)

    def one(label, metric_fn, *, events=False):
        estimator = run.estimator(model_fn=with_metrics(metric_fn))
        evaluate(run, estimator, label, count=batches)
        if events:
            eval_events(run, estimator)

    one("no eval_metrics", None, events=True)
    one("a metric called loss", lambda x: {"loss": js.metrics.mean(x)})
    one("a metric called global_step", lambda x: {"global_step": js.metrics.mean(x)})
    one("no metrics in the dict", lambda x: {}, events=True)
    one("metric_fn returns None", lambda x: None, events=True)
    one("metric_fn returns a list", lambda x: [js.metrics.mean(x)])
    one("a value that is not a (value, update) pair", lambda x: {"a": x})
    one("a pair given as list", lambda x: {"a": [js.metrics.mean(x), None]})
    label = "metrics that are a vector, a double, an int, a bool, an int64, a text"
    one(label, lambda x: {name: Constant(value) for name, value in VARIED.items()}, events=True)
    estimator = run.estimator()
    nan = run.input(batches, logged=False, nan_at=1, bad=float("nan"))
    run.call("NaN in the input", lambda: estimator.evaluate(nan))
    eval_events(run, estimator)


@scenario("predict/no_checkpoint")
def predict_no_checkpoint(run):
    estimator = run.estimator()
    run.call("list(predict())", lambda: list(estimator.predict(run.input(1))))
    run.state(estimator)


def one_array(variables, features, mode, params):
    """The counting model whose prediction is one array, `[rows, 2]`."""
    spec = contract_models.model_fn(variables, features, mode, params)
    x = features["x"]
    return spec._replace(predictions=jnp.stack([x, x + 1], axis=1))


@scenario("predict/rows_and_batches")
def rows_and_batches(run, b, batches, last):
    estimator = run.estimator()
    estimator.train(run.input(logged=False), steps=b)

    def input_fn(count=batches, **kwargs):
        return run.input(count, **{"last": last, "logged": False, **kwargs})

    run.call("list(predict())", lambda: list(estimator.predict(input_fn())))
    run.call(
        "list(predict(yield_single_examples=False))",
        lambda: list(estimator.predict(input_fn(), yield_single_examples=False)),
    )
    with_labels = input_fn(1, last=None, labels=True)
    run.call("list(predict()) with (features, labels) input", lambda: list(estimator.predict(with_labels)))
    run.call("list(predict()) over 0 batches", lambda: list(estimator.predict(input_fn(0))))
    estimator = run.estimator(model_fn=run.model(one_array, losses=False))
    run.call("predictions is one tensor: list(predict())", lambda: list(estimator.predict(input_fn())))
    run.call(
        "predictions is one tensor: predict_keys=['x']",
        lambda: list(estimator.predict(input_fn(), predict_keys=["x"])),
    )


@scenario("predict/predict_keys")
def predict_keys(run, predictions):
    def named(variables, features, mode, params):
        spec = contract_models.model_fn(variables, features, mode, params)
        return spec._replace(predictions=dict.fromkeys(predictions, features["x"]))

    estimator = run.estimator(model_fn=run.model(named, losses=False))

    def keys_of(keys):
        return sorted(next(estimator.predict(run.input(1, logged=False), predict_keys=keys)))

    x, w, xw = predictions
    for keys in (None, [x], [w, x], (xw,), {x}, [x, "nothing"], [], x, xw, f"{w} and {x}"):
        run.call(f"keys of predict(predict_keys={keys!r})", lambda keys=keys: keys_of(keys))
    for keys in (["none"], "none"):
        run.call(f"predict(predict_keys={keys!r})", lambda keys=keys: keys_of(keys))


@scenario("predict/shapes", fallback_only="shards would be concatenated: no batch axis is the same on all of them")
def shapes(run):
    def predicting(other):
        def model_fn(variables, features, mode, params):
            spec = contract_models.model_fn(variables, features, mode, params)
            return spec._replace(predictions={"x": features["x"], "other": other})

        return run.estimator(model_fn=run.model(model_fn, losses=False))

    def predict(estimator, **kwargs):
        return list(estimator.predict(run.input(1, logged=False), **kwargs))

    label = "the same, yield_single_examples=False"
    (shapes_recorded,) = run.recorded.returned(label)
    differing = predicting(jnp.zeros(shapes_recorded["other"]))
    run.call("different first dimensions", lambda: predict(differing))
    run.call(
        label,
        lambda: predict(differing, yield_single_examples=False),
        lambda batches: [{key: list(value.shape) for key, value in batch.items()} for batch in batches],
    )
    run.call("a scalar among the outputs", lambda: predict(predicting(jnp.zeros(()))))


@scenario("warm_start/values")
def warm_start(run, b):
    names = ("params/a", "params/b", "constants/fixed")

    def init(values):
        a, b, fixed = map(jnp.float32, values)
        return lambda: {"params": {"a": a, "b": b}, "constants": {"fixed": fixed}}

    def model_fn(variables, features, mode, params):
        tensors = {name.split("/")[1]: variables[name.split("/")[0]][name.split("/")[1]] for name in names}
        rows = {key: jnp.broadcast_to(value, features["x"].shape) for key, value in tensors.items()}
        return js.TPUEstimatorSpec(
            mode,
            loss=features["x"].mean(),
            train_op=js.apply_gradients(optax.sgd(1.0), {"a": -jnp.ones(()), "b": jnp.zeros(())}),
            eval_metrics=(lambda **rows: {key: js.metrics.mean(value) for key, value in rows.items()}, rows),
        )

    def estimator(warm_start_from, values=(1, 2, 3), name=None):
        return run.estimator(
            name and run.folder(name), model_fn=model_fn, init_fn=init(values), warm_start_from=warm_start_from
        )

    source = estimator(None, (10, 20, 30), name="source").train(run.input(logged=False), steps=b)

    def settings(**kwargs):
        return js.WarmStartSettings(source.model_dir, **kwargs)

    def values(it):
        if it.latest_checkpoint() is None:
            return None
        return {name.split("/")[-1]: float(it.get_variable_value(name)) for name in (*names, "global_step")}

    for what, warm_start_from in {
        "a checkpoint path": source.latest_checkpoint(),
        "a folder": source.model_dir,
        "WarmStartSettings(vars_to_warm_start='a')": settings(vars_to_warm_start="params/a"),
        "WarmStartSettings(vars_to_warm_start='.*')": settings(vars_to_warm_start=".*"),
        "WarmStartSettings(vars_to_warm_start=['a', 'fixed'])": settings(
            vars_to_warm_start=["params/a", "constants/fixed"]
        ),
        "WarmStartSettings(vars_to_warm_start=None)": settings(vars_to_warm_start=None),
        "WarmStartSettings(vars_to_warm_start='x')": settings(vars_to_warm_start="params/x"),
        "WarmStartSettings(a from b)": settings(
            vars_to_warm_start="params/a", var_name_to_prev_var_name={"params/a": "params/b"}
        ),
    }.items():
        it = estimator(warm_start_from)
        evaluate(run, it, f"warm_start_from={what}: evaluate before training", steps=1)
        for label in ("train(steps=1)", "train(steps=1) again: the own checkpoint wins"):
            run.call(label, lambda it=it: it.train(run.input(logged=False), steps=1))
            run.data("values", values(it))
    run.call("warm_start_from=3", lambda: estimator(3))
    run.call("WarmStartSettings('')", lambda: js.WarmStartSettings(""))
    label = "warm_start_from a path without a checkpoint: train(steps=1)"
    missing = estimator(run.folder("nothing_here"))
    run.call(label, lambda: missing.train(run.input(logged=False), steps=1))
