"""The user's functions are called as Python would: an argument with a default may be left out, `**kwargs` take the
rest."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import accuracy_fn, batches, data, linear_init, linear_logits, linear_model_fn, run_config

import jaxspec as js

X, Y = data(rows=12)


def estimator(tmp_path, model_fn=linear_model_fn, init_fn=linear_init, **kwargs):
    config = run_config(num_shards=1)
    sizes = dict(train_batch_size=4, eval_batch_size=4, predict_batch_size=4)
    return js.TPUEstimator(model_fn, init_fn, model_dir=tmp_path / "model", config=config, **sizes, **kwargs)


def test_functions_may_have_arguments_with_defaults_of_their_own(tmp_path):
    seen = []

    def input_fn(x=X, y=Y, *, shuffle=False):
        assert not shuffle
        return batches(x, y, size=4)

    def init_fn(rng, features, scale=0.1):
        return {"params": {"w": jnp.full((4, 3), scale), "b": jnp.zeros(3)}}

    def model_fn(variables, features, labels, mode, hidden=128, *, flag=True):
        seen.append((hidden, flag))
        return linear_model_fn(variables, features, labels, mode)

    trained = estimator(tmp_path, model_fn, init_fn).train(input_fn)
    assert trained.get_variable_value("global_step") == 3
    assert set(seen) == {(128, True)}


def test_functions_with_any_keywords_get_all_of_them(tmp_path):
    seen = {}

    def input_fn(**given):
        seen["input_fn"] = set(given)
        return batches(X, Y, size=4)

    def init_fn(rng, **given):
        seen["init_fn"] = set(given)
        return linear_init(rng)

    def model_fn(features, **given):
        seen["model_fn"] = set(given)
        return linear_model_fn(given["variables"], features, given["labels"], given["mode"])

    estimator(tmp_path, model_fn, init_fn).train(input_fn)
    assert seen == {
        "input_fn": {"params", "mode", "config"},
        "init_fn": {"features", "labels", "params"},
        "model_fn": {"labels", "mode", "params", "config", "variables", "step", "rng", "opt_state"},
    }


def by_keyword(**tensors):
    return accuracy_fn(tensors["labels"], tensors["logits"])


def with_default(labels, logits, scale=1):
    assert scale == 1
    return accuracy_fn(labels, logits)


def with_keyword_default(labels, logits, *, scale=1):
    return with_default(labels, logits, scale)


def of_any_number(*tensors):
    return accuracy_fn(*tensors)


HOST_FUNCTIONS = {
    "keywords": (by_keyword, dict),
    "default by keyword": (with_default, dict),
    "default by position": (with_default, list),
    "keyword-only default": (with_keyword_default, list),
    "positions": (of_any_number, list),
    "bound": (functools.partial(with_default, scale=1), list),
}


@pytest.mark.parametrize("case", HOST_FUNCTIONS)
def test_metric_fn_and_host_call_are_called_as_python_would(tmp_path, case):
    fn, kind = HOST_FUNCTIONS[case]
    calls = []

    def counted(*args, **kwargs):
        calls.append(1)
        fn(*args, **kwargs)

    host_fn = functools.wraps(fn)(counted)

    def model_fn(variables, features, labels, mode):
        spec = linear_model_fn(variables, features, labels, mode)
        tensors = {"labels": labels, "logits": linear_logits(variables, features)}
        tensors = tensors if kind is dict else list(tensors.values())
        return spec._replace(eval_metrics=(fn, tensors), host_call=(host_fn, tensors))

    def init_fn():
        return {"params": {"w": jnp.eye(4, 3), "b": jnp.zeros(3)}}

    result = estimator(tmp_path, model_fn, init_fn).evaluate(lambda: batches(X, Y, size=4))
    assert result["accuracy"] == np.mean(X[:, :3].argmax(-1) == Y)
    assert len(calls) == 3


REFUSED = {
    "model_fn": (
        dict(model_fn=lambda features, hidden: None),
        r"model_fn .*not expected args: \['hidden'\].*a default",
    ),
    "init_fn": (dict(init_fn=lambda rng, size, scale=1: None), r"init_fn .*not expected args: \['size'\].*a default"),
    "by position": (dict(init_fn=lambda rng, /: None), r"init_fn .*not expected args: \['rng'\]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_unknown_argument_without_a_default_is_refused(tmp_path, case):
    kwargs, text = REFUSED[case]
    with pytest.raises(ValueError, match=text):
        estimator(tmp_path, **kwargs)


def test_an_unknown_argument_of_input_fn_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"input_fn .*not expected args: \['path'\].*functools.partial\(input_fn, path="
    ):
        estimator(tmp_path).train(lambda path, rows=3: None)


@pytest.mark.parametrize("count", [1, 4])
def test_tensors_are_at_least_the_needed_and_at_most_all_arguments(count):
    def metric_fn(a, b, c=1):
        return {}

    with pytest.raises(
        RuntimeError, match=rf"length of tensors {count} does not match .*takes 2 to 3: .*metric_fn\(a, b, c=1\)"
    ):
        js.TPUEstimatorSpec("eval", loss=np.float32(1), eval_metrics=(metric_fn, [np.ones(2)] * count))
