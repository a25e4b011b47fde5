"""An error of model_fn or init_fn comes back as itself, with a note that says what to write where that is certain."""

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_models import batches, data, linear_init, linear_model_fn, run_config

import jaxspec as js

X, Y = data(rows=8)
KEY = jax.random.key(0)


class Net(nn.Module):
    axis: str | None = None

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, axis_name=self.axis)(nn.Dense(2)(x))
        return nn.Dropout(0.5, deterministic=not train)(x).mean(-1)


def spec(mode, loss):
    return js.TPUEstimatorSpec(mode, loss=loss, train_op=js.minimize(optax.sgd(0.1)))


def notes_of(error):
    return "\n".join(note for note in getattr(error, "__notes__", ()) if "JAX has removed" not in note)


def failing(model_fn, init_fn=linear_init, labels=Y, mode="train"):
    """The error and its notes of a model_fn that is traced."""
    state = js.create_train_state(lambda features, mode: spec(mode, jnp.float32(1)), init_fn, KEY, X)
    step = {"train": js.make_train_step, "eval": js.make_eval_step, "infer": js.make_predict_step}[mode](model_fn)
    arguments = (X,) if mode == "infer" else (X, labels)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        jax.jit(step)(state, *arguments)
    return caught.value, notes_of(caught.value)


def test_the_error_is_the_very_object_that_model_fn_raised():
    mine = RuntimeError("mine")

    def model_fn(variables, features, labels, mode):
        raise mine

    error, notes = failing(model_fn)
    assert error is mine
    assert "jaxspec:" not in notes
    assert error.__cause__ is None


def test_a_forgotten_mutable_is_answered_with_mutable_and_updates():
    def model_fn(variables, features, labels, mode, rng):
        return spec(mode, Net().apply(variables, features, train=True, rngs={"dropout": rng}).mean())

    error, notes = failing(model_fn, Net())
    assert isinstance(error, flax.errors.ModifyScopeVariableError)
    assert 'out, updates = module.apply(variables, features, mutable=["batch_stats"])' in notes
    assert "train_op=jaxspec.minimize(optimizer, updates=updates)" in notes
    assert "never made" not in f"{error}{notes}"


def test_a_forgotten_key_of_dropout_is_answered_with_rngs():
    def model_fn(variables, features, labels, mode):
        return spec(mode, Net().apply(variables, features, train=True, mutable=["batch_stats"])[0].mean())

    error, notes = failing(model_fn, Net())
    assert isinstance(error, flax.errors.InvalidRngError)
    assert 'module.apply(variables, features, rngs={"dropout": rng})' in notes


def test_a_module_that_is_called_without_variables():
    error, notes = failing(lambda features, labels, mode: spec(mode, Net()(features)))
    assert isinstance(error, flax.errors.CallCompactUnboundModuleError)
    assert "module.apply(variables, features)" in notes


def missing_collection(variables, features, mode, labels):
    return spec(mode, variables["ema"]["w"])


def missing_flax_collection(variables, features, mode, labels):
    return spec(mode, Net().apply({"params": variables["params"]}, features).mean())


@pytest.mark.parametrize(
    ("model_fn", "kind"),
    [(missing_collection, KeyError), (missing_flax_collection, flax.errors.ScopeCollectionNotFound)],
)
def test_a_collection_that_is_missing(model_fn, kind):
    error, notes = failing(model_fn, Net())
    assert type(error) is kind
    assert "the collections ['batch_stats', 'params']. Let init_fn return what is missing" in notes


def test_a_key_error_where_the_variables_are_not_at_hand_gets_no_note():
    def another():
        return {"a": 1}["ema"]

    def model_fn(variables, features, labels, mode):
        return another()

    error, notes = failing(model_fn)
    assert type(error) is KeyError
    assert "jaxspec:" not in notes


# None


def own_none(variables, features, mode):
    return spec(mode, (features * {"train": None}.get(mode)).mean())


def own_none_beside_labels(variables, features, labels, mode):
    scale = None
    return spec(mode, (features * scale).mean() + (0 if labels is None else labels.mean()))


def own_none_in_a_function_of_labels(variables, features, labels, mode):
    def loss(x, y):
        scale = None
        return (x * scale).mean()

    return spec(mode, loss(features, labels))


def own_none_in_one_expression_with_labels(variables, features, labels, mode):
    mask = None
    return spec(mode, optax.softmax_cross_entropy_with_integer_labels(features, labels, where=mask + labels).mean())


@pytest.mark.parametrize(
    "model_fn",
    [own_none, own_none_beside_labels, own_none_in_a_function_of_labels, own_none_in_one_expression_with_labels],
)
def test_a_none_of_the_users_own_is_not_taken_for_labels(model_fn):
    error, notes = failing(model_fn, labels=None)
    assert type(error) is TypeError
    assert "NoneType" in str(error)
    assert "labels" not in notes


def subtracts(variables, features, labels, mode):
    return spec(mode, (features[:, 0] - labels).mean())


def hands_to_a_library(variables, features, labels, mode):
    return spec(mode, optax.softmax_cross_entropy_with_integer_labels(features, labels).mean())


def hands_to_its_own(variables, features, labels, mode):
    def loss(x, y):
        return (x[:, 0] - y).mean()

    return spec(mode, loss(features, labels))


def uses_in_a_closure(variables, features, labels, mode):
    def loss(v):
        return (features[:, 0] - labels).mean()

    return js.TPUEstimatorSpec(mode, loss=loss(variables), train_op=js.minimize(optax.sgd(0.1), loss))


def asks_for_a_key(variables, features, labels, mode):
    return spec(mode, labels["y"].mean())


USES = [subtracts, hands_to_a_library, hands_to_its_own, uses_in_a_closure, asks_for_a_key]


@pytest.mark.parametrize("model_fn", USES)
def test_labels_that_are_used_and_not_there(model_fn):
    error, notes = failing(model_fn, labels=None)
    assert type(error) in (TypeError, AttributeError, ValueError)
    assert "labels are None here, as input_fn yields features only. If the error comes from that, let it yield" in notes


def test_labels_that_are_used_in_prediction():
    _, notes = failing(subtracts, mode="infer")
    assert "labels are None in PREDICT. If the error comes from that, return TPUEstimatorSpec(mode, pred" in notes


def test_an_error_of_the_spec_itself_is_not_laid_on_labels():
    error, notes = failing(lambda features, labels, mode: js.TPUEstimatorSpec(mode), mode="infer")
    assert "predictions" in str(error)
    assert "labels" not in notes


# the axis and values


def test_another_axis_name_is_answered_with_shard_axis(tmp_path):
    net = Net(axis="batch")

    def model_fn(variables, features, labels, mode, rng):
        rngs = {"dropout": rng}
        return spec(mode, net.apply(variables, features, train=True, mutable=["batch_stats"], rngs=rngs)[0].mean())

    error, notes = failing(model_fn, Net())
    assert isinstance(error, NameError)
    assert "jaxspec.SHARD_AXIS ('shards')" in notes
    with pytest.raises(NameError) as caught:
        js.create_train_state(model_fn, lambda rng: {"params": jax.lax.psum(jnp.ones(1), "batch")}, KEY, X, Y)
    assert "jaxspec.SHARD_AXIS ('shards')" in notes_of(caught.value)


def if_on_step(variables, features, labels, mode, step):
    return spec(mode, features.mean() * (2 if step > 10 else 1))


def float_of_loss(variables, features, labels, mode):
    return spec(mode, jnp.asarray(float(features.mean())))


def numpy_of_features(variables, features, labels, mode):
    return spec(mode, jnp.asarray(np.sort(features).mean()))


def range_of_step(variables, features, labels, mode, step):
    return spec(mode, sum(features.mean() for _ in range(step)))


@pytest.mark.parametrize("model_fn", [if_on_step, float_of_loss, numpy_of_features, range_of_step])
def test_values_that_are_not_there_yet(model_fn):
    error, notes = failing(model_fn)
    assert isinstance(error, jax.errors.JAXTypeError)
    for line in ("jnp.where or jax.lax.cond", "optax schedule", "jax.debug.print", "host_call=(fn, [loss])"):
        assert line in notes


# init_fn


def test_an_error_of_init_fn_says_whose_batch_it_saw(tmp_path):
    def init_fn(rng, features, labels):
        return {"params": {"w": jnp.zeros((features.shape[-1], labels.max() * 0 + 3)), "b": jnp.zeros(3)}}

    def estimator():
        sizes = dict(train_batch_size=4, eval_batch_size=4, predict_batch_size=4)
        config = run_config(num_shards=2)
        return js.TPUEstimator(linear_model_fn, init_fn, model_dir=tmp_path, config=config, **sizes)

    def list_of(x):
        return list(x)

    for verb, labelled in (("predict", False), ("evaluate", True), ("train", True)):
        given = batches(X, Y, size=4) if labelled else [X[:4]]
        with pytest.raises(Exception) as caught:  # noqa: PT011
            list_of(getattr(estimator(), verb)(lambda given=given: given))
        notes = notes_of(caught.value)
        seen = "int32[2]" if labelled else "None"
        assert f"raised by init_fn, which saw features: float32[2,4]; labels: {seen}." in notes
        assert f"that was a batch of {verb}: init_fn runs with the first batch of whichever verb comes first" in notes


def test_a_dict_of_features_for_a_module():
    with pytest.raises(Exception) as caught:  # noqa: PT011
        js.create_train_state(linear_model_fn, Net(), KEY, {"x": X})
    notes = notes_of(caught.value)
    assert "features being a dict of x: float32[8,4]" in notes
    assert "init_fn=lambda rng, features: Net(...).init(rng, features[" in notes


def test_an_error_of_a_module_gets_no_such_note():
    class Broken(nn.Module):
        @nn.compact
        def __call__(self, x):
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine") as caught:
        js.create_train_state(linear_model_fn, Broken(), KEY, X)
    assert "jaxspec:" not in notes_of(caught.value)


# partitioning, empty predictions


class Partitioned(nn.Module):
    @nn.compact
    def __call__(self, x):
        ones = nn.with_partitioning(nn.initializers.ones, (None, "model"))
        x = nn.Dense(2, kernel_init=ones, use_bias=False)(x)
        return x + self.variable("stats", "n", nn.with_partitioning(lambda: jnp.zeros(2), ("model",))).value


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("make", ["module", "function"])
def test_partitioning_over_an_axis_that_is_not_there_is_without_effect(tmp_path, shards, make):
    net = Partitioned()

    def model_fn(variables, features, mode):
        return spec(mode, net.apply(variables, features).sum(-1).mean())

    estimator = js.TPUEstimator(
        model_fn,
        net if make == "module" else lambda rng, features: net.init(rng, features),
        model_dir=tmp_path,
        config=run_config(num_shards=shards),
        train_batch_size=8,
    )
    estimator.train(lambda: [X])
    assert set(estimator.get_variable_names()) >= {"params/Dense_0/kernel", "stats/n"}
    expected = 1 - 0.1 * X.mean(0)[:, None] * np.ones((1, 2))
    np.testing.assert_allclose(estimator.get_variable_value("params/Dense_0/kernel"), expected, rtol=1e-5)


def test_empty_predictions_are_refused():
    error, _ = failing(lambda features, mode: js.TPUEstimatorSpec(mode, predictions={}), mode="infer")
    assert isinstance(error, ValueError)
    assert str(error).startswith("predictions is an empty dict in mode 'infer'")
    assert "predictions={'class': logits.argmax(-1)}" in str(error)
