"""The spec: fields, rules, pytree, as_estimator_spec."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxspec as js
from jaxspec import hooks

LOSS = np.float32(1.5)
OP = js.minimize(optax.sgd(0.1))


def metric_fn(labels, logits):
    return {"mean": js.metrics.mean(logits)}


def full_spec(mode=js.ModeKeys.EVAL, scale=1.0):
    x = scale * jnp.arange(4.0)
    return js.TPUEstimatorSpec(
        mode,
        predictions={"a": x},
        loss=x.sum(),
        train_op=js.minimize(optax.sgd(0.1), updates={"stats": x}),
        eval_metrics=(metric_fn, [x, x + 1]),
        host_call=(lambda x, y: None, {"x": x, "y": x * 2}),
        training_hooks=[hooks.SessionRunHook()],
    )


def test_fields_are_those_of_tpuestimator_in_their_order():
    fields = "mode predictions loss train_op eval_metrics export_outputs scaffold_fn host_call"
    hooks = "training_hooks evaluation_hooks prediction_hooks"
    assert js.TPUEstimatorSpec._fields == (*fields.split(), *hooks.split())


def test_it_is_a_namedtuple():
    spec = full_spec()
    mode, predictions, loss, *_ = spec
    assert (mode, loss) == (spec[0], spec[2])
    assert predictions is spec.predictions
    assert spec._asdict()["mode"] == js.ModeKeys.EVAL


def test_replace_checks_again():
    spec = full_spec()
    assert spec._replace(loss=jnp.zeros(())).loss == 0
    with pytest.raises(ValueError, match="Loss must be scalar"):
        spec._replace(loss=jnp.zeros(3))


def test_mode_values():
    assert (js.ModeKeys.TRAIN, js.ModeKeys.EVAL, js.ModeKeys.PREDICT) == ("train", "eval", "infer")


REFUSED = {
    "train_op missing": (dict(mode="train", loss=LOSS), ValueError, "Missing train_op"),
    "loss missing in TRAIN": (dict(mode="train", train_op=OP), ValueError, "Missing loss"),
    "loss missing in EVAL": (dict(mode="eval"), ValueError, "Missing loss"),
    "predictions missing": (dict(mode="infer"), ValueError, "Missing predictions"),
    "loss a vector": (dict(mode="eval", loss=np.zeros(2)), ValueError, r"Loss must be scalar, given: float64\[2\]"),
    "loss no array": (dict(mode="eval", loss=1.0), TypeError, "loss must be an array, given: 1.0"),
    "train_op an array": (
        dict(mode="train", loss=LOSS, train_op=LOSS),
        TypeError,
        "train_op must be a TrainOp.*minimize",
    ),
    "predictions a list": (dict(mode="infer", predictions=[LOSS]), TypeError, "predictions must be an array or a dict"),
    "a prediction no array": (dict(mode="infer", predictions={"a": 5}), TypeError, r"predictions\[a\].*given: 5"),
    "eval_metrics a dict": (
        dict(mode="eval", loss=LOSS, eval_metrics={}),
        ValueError,
        "eval_metrics should be tuple or list",
    ),
    "host_call of three": (
        dict(mode="eval", loss=LOSS, host_call=(print, [], 1)),
        ValueError,
        "host_call should have two elements, given 3",
    ),
    "eval_metrics not callable": (
        dict(mode="eval", loss=LOSS, eval_metrics=("f", [])),
        TypeError,
        r"eval_metrics\[0\] should be callable, given: 'f'",
    ),
    "tensors no list": (
        dict(mode="eval", loss=LOSS, eval_metrics=(metric_fn, LOSS)),
        ValueError,
        r"eval_metrics\[1\] should be tuple or list, or dict",
    ),
    "too few tensors": (
        dict(mode="eval", loss=LOSS, eval_metrics=(metric_fn, [LOSS])),
        RuntimeError,
        r"length of tensors 1 does not match method args of the function, which takes 2: metric_fn\(labels, logits\)",
    ),
    "more tensors than defaults": (
        dict(mode="eval", loss=LOSS, eval_metrics=(lambda a, b=1: {}, [LOSS] * 3)),
        RuntimeError,
        "length of tensors 3 does not match method args of the function, which takes 1 to 2: ",
    ),
    "hook class": (
        dict(mode="eval", loss=LOSS, evaluation_hooks=[hooks.SessionRunHook]),
        TypeError,
        r"All hooks must be SessionRunHook instances.*write SessionRunHook\(\)",
    ),
    "one hook": (dict(mode="eval", loss=LOSS, evaluation_hooks=hooks.SessionRunHook()), TypeError, "must be a list"),
    "scaffold_fn": (
        dict(mode="eval", loss=LOSS, scaffold_fn=3),
        TypeError,
        "scaffold_fn must be callable, given: 3. Write a function without arguments",
    ),
    "export_outputs": (
        dict(mode="infer", predictions=LOSS, export_outputs=[1]),
        TypeError,
        "`export_outputs` must be dict",
    ),
    "export_outputs value": (
        dict(mode="infer", predictions=LOSS, export_outputs={"a": 5}),
        TypeError,
        "must be ExportOutput objects",
    ),
    "no default signature": (
        dict(
            mode="infer",
            predictions=LOSS,
            export_outputs={"a": js.export.PredictOutput(LOSS), "b": js.export.PredictOutput(LOSS)},
        ),
        ValueError,
        "none of them are specified as the default",
    ),
}


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_refused(case):
    kwargs, error, text = REFUSED[case]
    with pytest.raises(error, match=text):
        js.TPUEstimatorSpec(**kwargs)


def test_fields_that_the_mode_does_not_need_are_ignored():
    js.TPUEstimatorSpec("infer", predictions=LOSS, loss=LOSS, train_op=OP, eval_metrics=(metric_fn, [LOSS, LOSS]))
    js.TPUEstimatorSpec(None)


def test_loss_of_one_element_becomes_a_scalar():
    assert js.TPUEstimatorSpec("eval", loss=jnp.ones((1, 1))).loss.shape == ()


def test_varargs_take_any_number_and_partials_and_methods_are_counted_right():
    class Metrics:
        def method(self, a):
            return {}

    for fn in (lambda *a: {}, functools.partial(lambda k, a: {}, 5), Metrics().method):
        js.TPUEstimatorSpec("eval", loss=LOSS, eval_metrics=(fn, [LOSS]))


def test_bare_optimizer_is_minimize():
    op = js.TPUEstimatorSpec("train", loss=LOSS, train_op=optax.sgd(0.1)).train_op
    assert isinstance(op, js.TrainOp)
    assert op.reduction == "mean"


def test_rebuilding_never_checks():
    for spec in (full_spec(), full_spec().as_estimator_spec()):
        rebuilt = jax.tree.map(lambda _: object(), spec)
        assert type(rebuilt) is type(spec)
        assert jax.tree.map(lambda _: None, spec).loss is None


def test_leaves_are_the_arrays():
    spec = full_spec()
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(spec))
    assert len(jax.tree.leaves(spec)) == 1 + 1 + 1 + 2 + 2
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(spec)]
    assert ".eval_metrics[0]" in names
    assert ".train_op.updates['stats']" in names


def roundtrips():
    def make(scale):
        return full_spec(scale=scale)

    one = jnp.ones(())
    yield "jit", jax.jit(make)(one)
    yield "eval_shape", jax.eval_shape(make, one)
    yield "device_get", jax.device_get(make(one))
    yield "vmap", jax.tree.map(lambda x: x[0], jax.vmap(make)(jnp.ones(2)))
    yield "pmap", jax.tree.map(lambda x: x[0], jax.pmap(make)(jnp.ones(2)))
    yield "scan", jax.tree.map(lambda x: x[0], jax.lax.scan(lambda c, s: (c, make(s)), 0, jnp.ones(2))[1])


@pytest.mark.parametrize("name", ["jit", "eval_shape", "device_get", "vmap", "pmap", "scan"])
def test_roundtrip(name):
    spec = dict(roundtrips())[name]
    expected = full_spec()
    assert isinstance(spec, js.TPUEstimatorSpec)
    assert spec.eval_metrics[0] is metric_fn
    assert isinstance(spec.eval_metrics[1], list)
    assert set(spec.host_call[1]) == {"x", "y"}
    for got, want in zip(jax.tree.leaves(spec), jax.tree.leaves(expected), strict=True):
        assert got.shape == want.shape
        if name != "eval_shape":
            np.testing.assert_array_equal(got, want)


# as_estimator_spec


def test_as_estimator_spec_calls_metric_fn_with_numpy_on_eval_only():
    seen = []

    def fn(a, b):
        seen.append((type(a), type(b)))
        return {"m": js.metrics.mean(a)}

    x = jnp.arange(4.0)
    for tensors in ([x, x], {"b": x, "a": x}):
        spec = js.TPUEstimatorSpec("eval", loss=x.sum(), eval_metrics=(fn, tensors))
        assert spec.as_estimator_spec().eval_metric_ops["m"].compute() == 1.5
    spec = js.TPUEstimatorSpec("train", loss=x.sum(), train_op=OP, eval_metrics=(fn, [x, x]))
    assert spec.as_estimator_spec().eval_metric_ops == {}
    assert seen == [(np.ndarray, np.ndarray)] * 2


def test_host_call_becomes_one_hook_in_training_and_evaluation():
    calls = []
    mine = hooks.SessionRunHook()
    spec = js.TPUEstimatorSpec(
        "train",
        loss=LOSS,
        train_op=OP,
        host_call=(lambda x: calls.append(x), [jnp.ones(2)]),
        training_hooks=[mine],
        prediction_hooks=[mine],
    )
    host = spec.as_estimator_spec()
    assert calls == []
    assert host.training_hooks[0] is mine
    assert [len(h) for h in (host.training_hooks, host.evaluation_hooks, host.prediction_hooks)] == [2, 1, 1]
    host.training_hooks[1].after_run(None, None)
    np.testing.assert_array_equal(calls, [[1, 1]])


def test_host_calls_belong_to_the_spec_instance():
    specs = [
        js.TPUEstimatorSpec("eval", loss=LOSS, eval_metrics=(functools.partial(_named, name), [])) for name in "ab"
    ]
    assert list(specs[0].as_estimator_spec().eval_metric_ops) == ["a"]
    replaced = specs[0]._replace(eval_metrics=(functools.partial(_named, "c"), []))
    assert list(replaced.as_estimator_spec().eval_metric_ops) == ["c"]


def _named(name):
    return {name: js.metrics.mean(np.ones(1))}


def test_scaffold_fn_is_called():
    scaffold = js.Scaffold(init_fn=lambda v: v)
    spec = js.TPUEstimatorSpec("eval", loss=LOSS, scaffold_fn=lambda: scaffold)
    assert spec.as_estimator_spec().scaffold is scaffold
    with pytest.raises(ValueError, match="scaffold_fn returns None, which is not allowed"):
        spec._replace(scaffold_fn=lambda: None).as_estimator_spec()
    with pytest.raises(TypeError, match=r"scaffold_fn must return a jaxspec.Scaffold. Given: 3"):
        spec._replace(scaffold_fn=lambda: 3).as_estimator_spec()


def test_on_tracers_it_says_where_to_call_it():
    with pytest.raises(ValueError, match=r"loss is being traced \(float32\[\]\); call it on the host, after js.gather"):
        jax.jit(lambda x: js.TPUEstimatorSpec("eval", loss=x).as_estimator_spec().loss)(1.0)


def test_metric_fn_must_return_a_dict_and_its_exception_is_its_own():
    spec = js.TPUEstimatorSpec("eval", loss=LOSS, eval_metrics=(lambda: 3, []))
    with pytest.raises(TypeError, match="metric_fn must return a dict from names to metric values, given: 3"):
        spec.as_estimator_spec()

    def broken():
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught:
        spec._replace(eval_metrics=(broken, [])).as_estimator_spec()
    assert "raised by metric_fn" in caught.value.__notes__[0]


def test_a_model_fn_called_by_hand_needs_no_estimator():
    def model_fn(features, labels, mode):
        return js.TPUEstimatorSpec(
            mode,
            loss=js.global_mean(features, weights=labels),
            eval_metrics=(lambda x: {"m": js.metrics.mean(x)}, [features]),
        )

    host = model_fn(np.array([1.0, 3.0]), np.array([1.0, 0.0]), js.ModeKeys.EVAL).as_estimator_spec()
    assert host.loss == 1
    assert host.eval_metric_ops["m"].compute() == 2


# EstimatorSpec


def test_estimator_spec_rules():
    spec = js.EstimatorSpec("eval", loss=LOSS)
    assert isinstance(spec.scaffold, js.Scaffold)
    assert spec.eval_metric_ops == {}
    assert js.EstimatorSpec._fields[4:9] == (
        "eval_metric_ops",
        "export_outputs",
        "training_chief_hooks",
        "training_hooks",
        "scaffold",
    )
    with pytest.raises(ValueError, match="mode of EstimatorSpec cannot be changed"):
        spec._replace(mode="train")
    with pytest.raises(TypeError, match="eval_metric_ops must be a dict"):
        spec._replace(eval_metric_ops=[1])
    with pytest.raises(TypeError, match="scaffold must be jaxspec.Scaffold. Given: 3"):
        spec._replace(scaffold=3)
    with pytest.raises(ValueError, match="Missing loss"):
        js.EstimatorSpec("eval")


# export_outputs


def test_export_outputs_of_a_predict_spec():
    default = js.TPUEstimatorSpec("infer", predictions={"a": LOSS}).export_outputs
    assert list(default) == ["serving_default"]
    assert default["serving_default"].outputs == {"a": LOSS}
    one = js.TPUEstimatorSpec("infer", predictions=LOSS, export_outputs={"x": js.export.RegressionOutput(LOSS)})
    assert one.export_outputs["serving_default"] is one.export_outputs["x"]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: js.export.PredictOutput({1: LOSS}), "key must be a string; got 1"),
        (lambda: js.export.PredictOutput("x"), "value must be an array; got 'x'"),
        (lambda: js.export.RegressionOutput(np.arange(3)), "Regression output value must be a floating array"),
        (lambda: js.export.ClassificationOutput(), "At least one of `scores` and `classes`"),
        (lambda: js.export.ClassificationOutput(scores=np.arange(3)), "scores must be a floating array"),
        (lambda: js.export.ClassificationOutput(classes=3), "classes must be an array; got 3"),
    ],
)
def test_export_output_rules(make, text):
    with pytest.raises(ValueError, match=text):
        make()


# captured tracers


def capture(kind):
    """A spec whose host functions capture `labels`, an array of model_fn."""

    def model_fn(labels):
        if kind == "closure":
            fn = lambda logits: {"m": logits - labels}  # noqa: E731
        elif kind == "default":
            fn = lambda logits, *, labels=labels: {"m": logits - labels}  # noqa: E731
        elif kind == "partial":
            fn = functools.partial(lambda labels, logits: {}, labels)
        elif kind == "nested":
            batch = {"labels": [labels]}
            inner = lambda: batch["labels"]  # noqa: E731
            fn = lambda logits: {"m": inner()}  # noqa: E731
        else:

            class Metrics:
                def __init__(self):
                    self.labels = labels

                def __call__(self, logits):
                    return {}

            fn = Metrics()
        return js.TPUEstimatorSpec("eval", loss=labels.sum(), eval_metrics=(fn, [labels]))

    return model_fn


@pytest.mark.parametrize("kind", ["closure", "default", "nested", "object"])
def test_metric_fn_that_captures_an_array_is_refused_by_name(kind):
    text = (
        r"metric_fn uses `labels`, an array of model_fn \(float32\[3\]\).*"
        r"pass it: eval_metrics=\(metric_fn, \[..., labels\]\)"
    )
    with pytest.raises(ValueError, match=text):
        jax.jit(capture(kind))(jnp.ones(3))


def test_bound_partial_is_refused_without_a_name():
    with pytest.raises(ValueError, match="metric_fn uses an array, an array of model_fn"):
        jax.jit(capture("partial"))(jnp.ones(3))


def test_concrete_captures_are_fine():
    capture("closure")(jnp.ones(3)).as_estimator_spec()


def test_host_call_scaffold_fn_and_hooks_are_searched_too():
    class Hook(hooks.SessionRunHook):
        def __init__(self, x):
            self.x = x

    cases = {
        r"host_call uses `x`.*host_call=\(fn, \[..., x\]\)": lambda x: {"host_call": (lambda: x, [])},
        "scaffold_fn uses `x`.*Scaffold.init_fn": lambda x: {"scaffold_fn": lambda: x},
        r"training_hooks\[0\] \(Hook\) uses `x`": lambda x: {"training_hooks": [Hook(x)]},
    }
    for text, fields in cases.items():
        with pytest.raises(ValueError, match=text):
            jax.jit(lambda x, fields=fields: js.TPUEstimatorSpec("eval", loss=x, **fields(x)))(1.0)


def test_what_is_no_tensor_of_a_host_function():
    with pytest.raises(TypeError, match=r"host_call\[1\]\['name'\] must be an array or a number, given: 'x'. Bind"):
        js.TPUEstimatorSpec("train", loss=jnp.zeros(()), host_call=(lambda name: None, {"name": "x"}))
