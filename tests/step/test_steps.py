"""Pure steps over any pytree model: state, arguments by name, TrainOps, what leaves the device."""

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tiny_models import (
    Net,
    assert_trees_equal,
    data,
    linear_init,
    linear_model_fn,
    net_model_fn,
    run_config,
)

import jaxspec as js

X, Y = data(rows=8)
KEY = jax.random.key(0)


def one_step(model_fn, init_fn, features=X, labels=Y, params=None):
    state = js.create_train_state(model_fn, init_fn, KEY, features, labels, params)
    return state, *jax.jit(js.make_train_step(model_fn, params))(state, features, labels)


def sgd_fn(make_op, loss_of=None):
    """A model_fn with one variable vector `w` and `v`, loss `sum(w * mean(x))`, and the train_op of `make_op`."""

    def model_fn(variables, features, mode, step, rng):
        p = variables["params"]
        loss = jnp.sum(p["w"] * features.mean()) + jnp.sum(p["v"])
        return js.TPUEstimatorSpec(mode, loss=loss, train_op=make_op(variables, features, step))

    return model_fn


def wv_init():
    return {"params": {"w": jnp.ones(2), "v": jnp.ones(3)}, "other": {"n": jnp.zeros(()), "i": jnp.int32(0)}}


# states


def test_a_fresh_state():
    state = js.create_train_state(net_model_fn, Net(), KEY, X, Y)
    assert state.step.dtype == jnp.int32
    assert state.step == 0
    assert set(state.variables) == {"params", "batch_stats"}
    assert jnp.issubdtype(state.rng.dtype, jax.dtypes.prng_key)
    adam = state.opt_state[0]
    assert jax.tree.structure(adam.mu) == jax.tree.structure(state.variables["params"])


def test_legacy_keys_are_taken():
    state = js.create_train_state(linear_model_fn, linear_init, jax.random.PRNGKey(0), X, Y)
    assert jnp.issubdtype(state.rng.dtype, jax.dtypes.prng_key)


def test_leaves_of_one_array_in_two_places_are_apart():
    def init_fn():
        w = jnp.ones(3)
        return {"params": {"w": w, "v": w}, "other": {"copy": w}}

    def model_fn(variables, features, mode):
        loss = jnp.sum(variables["params"]["w"] + variables["params"]["v"]) * features.mean()
        return js.TPUEstimatorSpec(mode, loss=loss, train_op=optax.sgd(0.1), scaffold_fn=lambda: js.Scaffold(twice))

    def twice(variables):
        one = jnp.full(3, 7.0)
        return {"params": {"w": one, "v": one}, "other": {"copy": one}}

    state = js.create_train_state(model_fn, init_fn, KEY, X)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state.variables)]
    assert len(set(pointers)) == 3
    step = jax.jit(js.make_train_step(model_fn), donate_argnums=0)
    for _ in range(3):
        state, _ = step(state, X)
    np.testing.assert_array_equal(state.variables["other"]["copy"], [7, 7, 7])


@pytest.mark.parametrize("shards", [1, 4])
def test_an_optimizer_may_keep_the_parameters_themselves(shards):
    """A donated state has no two leaves in one buffer, in a loop of one's own and in a run."""
    keeps = optax.GradientTransformation(lambda p: (p, p), lambda g, s, p=None: (g, s))

    def model_fn(variables, features, mode):
        loss = jnp.sum(variables["params"]["w"]) * features.mean()
        return js.TPUEstimatorSpec(mode, loss=loss, train_op=keeps)

    def init_fn():
        return {"params": {"w": jnp.ones(3)}}

    state = js.create_train_state(model_fn, init_fn, KEY, X)
    leaves = jax.tree.leaves((state.variables, state.opt_state))
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == 3
    estimator = js.TPUEstimator(model_fn, init_fn, config=run_config(num_shards=shards), train_batch_size=8)
    estimator.train(lambda: [X] * 3)
    np.testing.assert_allclose(estimator.get_variable_value("params/w"), 1 + 3 * X.mean(), rtol=1e-5)


def test_order_is_variables_then_scaffold_then_optimizer_state():
    """An optimizer that remembers the initial parameters remembers those of Scaffold.init_fn."""
    keep_first = optax.GradientTransformation(lambda p: p, lambda g, s, p=None: (g, s))

    def model_fn(variables, features, mode):
        loss = jnp.sum(variables["params"]["w"]) * features.mean()
        scaffold = js.Scaffold(lambda v: {"params": {"w": v["params"]["w"] + 5}})
        return js.TPUEstimatorSpec(mode, loss=loss, train_op=keep_first, scaffold_fn=lambda: scaffold)

    state = js.create_train_state(model_fn, lambda: {"params": {"w": np.ones(2, np.float32)}}, KEY, X)
    np.testing.assert_array_equal(state.opt_state["w"], [6, 6])


def test_scaffold_that_changes_shapes_names_the_leaf():
    def model_fn(variables, features, mode):
        scaffold = js.Scaffold(lambda v: {"params": {"w": np.zeros(3), "x": np.zeros(1)}})
        return js.TPUEstimatorSpec(mode, loss=features.mean(), train_op=optax.sgd(0.1), scaffold_fn=lambda: scaffold)

    text = r"Scaffold.init_fn returned variables that differ.*params/x: unexpected.*params/w: got float64\[3\], expected float32\[2\]"
    with pytest.raises(ValueError, match=text):
        js.create_train_state(model_fn, lambda: {"params": {"w": jnp.ones(2)}}, KEY, X)


def test_init_fn_gets_what_it_names():
    def init_fn(rng, features, labels, params):
        return {"params": {"w": jnp.zeros((features.shape[1], params["width"])), "n": jnp.full(labels.shape, 2.0)}}

    def model_fn(variables, features, labels, mode, params):
        return js.TPUEstimatorSpec(mode, loss=(features @ variables["params"]["w"]).mean(), train_op=optax.sgd(0.1))

    state = js.create_train_state(model_fn, init_fn, KEY, X, Y, {"width": 5})
    assert state.variables["params"]["w"].shape == (4, 5)
    assert state.variables["params"]["n"].shape == (8,)


def test_module_that_needs_more_arguments_shows_the_line_to_write():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, a, b):
            return nn.Dense(1)(a + b)

    with pytest.raises(TypeError, match=r"init_fn=Two.*init_fn=lambda rng, features: Two\(...\).init\(rng"):
        js.create_train_state(linear_model_fn, Two(), KEY, X, Y)


@pytest.mark.parametrize("made", [{"w": 1}, 3, None])
def test_init_fn_must_make_params(made):
    with pytest.raises(ValueError, match="must return a dict of collections with 'params' among them"):
        js.create_train_state(linear_model_fn, lambda: made, KEY, X, Y)


# any pytree model


def test_nnx_comes_in_through_to_linen():
    class Block(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(4, 3, rngs=rngs)
            self.norm = nnx.BatchNorm(3, rngs=rngs, use_running_average=False)

        def __call__(self, x):
            return self.norm(self.dense(x))

    module = nnx.bridge.to_linen(Block)

    def model_fn(variables, features, labels, mode):
        logits, updates = module.apply(variables, features, mutable=["batch_stats"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return js.TPUEstimatorSpec(mode, loss=loss, train_op=js.minimize(optax.adam(0.1), updates=updates))

    state, new, spec = one_step(model_fn, module)
    assert new.step == 1
    assert np.isfinite(spec.loss)
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(
            jax.tree.leaves(state.variables["batch_stats"]),
            jax.tree.leaves(new.variables["batch_stats"]),
            strict=True,
        )
    )


def test_integers_in_params_are_not_trained():
    def model_fn(variables, features, mode):
        p = variables["params"]
        loss = jnp.sum(p["w"]) * features.mean() * p["n"]
        return js.TPUEstimatorSpec(mode, loss=loss, train_op=optax.adam(0.1))

    _, new, _ = one_step(model_fn, lambda: {"params": {"w": jnp.ones(2), "n": jnp.int32(3)}}, labels=None)
    assert new.variables["params"]["n"] == 3
    assert new.variables["params"]["w"][0] != 1


# arguments of model_fn


def test_model_fn_gets_what_it_names():
    seen = {}

    def model_fn(features, labels, mode, params, variables, step, rng, config):
        seen.update(params, mode=mode, step=step, rng=rng, config=config)
        params["mine"].append(1)  # a copy
        return js.TPUEstimatorSpec(mode, loss=jnp.sum(variables["params"]["w"]), train_op=optax.sgd(0.1))

    params = {"mine": [3]}
    one_step(model_fn, lambda: {"params": {"w": jnp.ones(2)}}, params=params)
    assert (seen["batch_size"], seen["mode"], params) == (8, "train", {"mine": [3]})
    assert seen["step"].dtype == jnp.int32
    assert jnp.issubdtype(seen["rng"].dtype, jax.dtypes.prng_key)
    context = seen["context"]
    assert (context.num_replicas, context.num_hosts, context.num_of_replicas_per_host) == (1, 1, 1)
    with pytest.raises(RuntimeError, match="must not be called from model_fn"):
        _ = context.current_host


def test_unknown_argument_lists_the_allowed_ones():
    with pytest.raises(ValueError, match=r"not expected args: \['feature'\].*may name any of \['config', 'features'"):
        js.make_train_step(lambda feature, features, mode: None)


def test_features_are_required():
    with pytest.raises(ValueError, match="model_fn .* must include features argument"):
        js.make_train_step(lambda labels, mode: None)


def test_rng_differs_by_step_and_repeats():
    def model_fn(variables, features, mode, rng):
        noise = jax.random.normal(rng, ())
        return js.TPUEstimatorSpec(
            mode, loss=variables["params"]["w"] * noise, train_op=optax.sgd(0.0), host_call=(print, [noise])
        )

    state = js.create_train_state(model_fn, lambda: {"params": {"w": jnp.ones(())}}, KEY, X)
    step = jax.jit(js.make_train_step(model_fn))
    first, spec0 = step(state, X)
    _, again = step(state, X)
    _, spec1 = step(first, X)
    assert spec0.loss == again.loss
    assert spec0.loss != spec1.loss


# what leaves the device


def test_only_what_the_mode_needs_leaves_the_device():
    x = X[:, 0]

    def model_fn(variables, features, mode):
        w = variables["params"]["w"]
        big = features * w
        return js.TPUEstimatorSpec(
            mode,
            predictions={"big": big},
            loss=big.mean(),
            train_op=js.minimize(optax.sgd(0.1), updates={"stats": {"s": big.sum()}}),
            eval_metrics=(lambda a: {}, [big]),
            host_call=(lambda s: None, [big.sum()]),
        )

    state = js.create_train_state(
        model_fn, lambda: {"params": {"w": jnp.ones(())}, "stats": {"s": jnp.zeros(())}}, KEY, x
    )
    _, train = js.make_train_step(model_fn)(state, x)
    evaluate = js.make_eval_step(model_fn)(state, x)
    predict = js.make_predict_step(model_fn)(state, x)
    assert len(jax.tree.leaves(train)) == 2
    assert train.predictions == {}
    assert train.eval_metrics is None
    assert len(jax.tree.leaves(evaluate)) == 3
    assert len(jax.tree.leaves(predict)) == 1
    assert (predict.mode, predict.loss) == ("infer", None)
    for spec in (train, evaluate, predict):
        spec.as_estimator_spec() if spec is not evaluate else None


# TrainOps


def test_gradient_is_that_of_the_spec_loss_and_updates_are_written():
    def op(variables, features, step):
        return js.minimize(optax.sgd(0.5), updates={"other": {"n": features.sum(), "i": step + 7}})

    _, new, spec = one_step(sgd_fn(op), wv_init, labels=None)
    np.testing.assert_allclose(new.variables["params"]["w"], 1 - 0.5 * X.mean(), rtol=1e-6)
    np.testing.assert_allclose(new.variables["params"]["v"], 0.5)
    np.testing.assert_allclose(new.variables["other"]["n"], X.sum(), rtol=1e-6)
    assert new.variables["other"]["i"] == 7
    np.testing.assert_allclose(spec.loss, 2 * X.mean() + 3, rtol=1e-6)


@pytest.mark.parametrize("of", ["w", ["w"], lambda path: path == "w"])
def test_of_names_what_is_trained(of):
    state, new, _ = one_step(sgd_fn(lambda *_: js.minimize(optax.adam(0.5), of=of)), wv_init, labels=None)
    np.testing.assert_array_equal(new.variables["params"]["v"], 1)
    assert new.variables["params"]["w"][0] != 1
    assert len(jax.tree.leaves(state.opt_state)) == 3  # count, mu and nu of w alone


def test_own_loss_with_its_updates():
    def op(variables, features, step):
        return js.minimize(
            optax.sgd(1.0), lambda v: (3 * v["params"]["w"].sum(), {"other": {"n": jnp.float32(9), "i": 2}})
        )

    _, new, spec = one_step(sgd_fn(op), wv_init, labels=None)
    np.testing.assert_array_equal(new.variables["params"]["w"], -2)
    assert new.variables["other"]["n"] == 9
    np.testing.assert_allclose(spec.loss, 2 * X.mean() + 3, rtol=1e-6)


def test_apply_gradients():
    def op(variables, features, step):
        return js.apply_gradients(optax.sgd(1.0), {"w": jnp.full(2, 0.25), "v": jnp.zeros(3)})

    def partial(variables, features, step):
        return js.apply_gradients(optax.sgd(1.0), {"w": jnp.full(2, 0.25)}, of="w")

    for make in (op, partial):
        _, new, _ = one_step(sgd_fn(make), wv_init, labels=None)
        np.testing.assert_array_equal(new.variables["params"]["w"], 0.75)
        np.testing.assert_array_equal(new.variables["params"]["v"], 1)


def test_after_sees_the_updated_variables():
    def op(variables, features, step):
        return js.minimize(
            optax.sgd(1.0),
            lambda v: v["params"]["w"].sum(),
            after=lambda v: {
                "other": {"n": v["params"]["w"][0] + 10, "i": 4},
                "params": {**v["params"], "v": jnp.full(3, 5.0)},
            },
        )

    _, new, _ = one_step(sgd_fn(op), wv_init, labels=None)
    assert new.variables["other"] == {"n": 10, "i": 4}
    np.testing.assert_array_equal(new.variables["params"]["v"], 5)


def test_a_sequence_runs_in_order_on_what_its_predecessor_left():
    def op(variables, features, step):
        return [
            js.minimize(optax.sgd(1.0), lambda v: v["params"]["w"].sum(), of="w"),  # w = 0
            js.minimize(optax.sgd(1.0), lambda v: (v["params"]["v"] * (2 + v["params"]["w"][0])).sum(), of="v"),
            js.minimize(optax.adam(0.1), of="w"),  # the spec's own loss, at the new variables
        ]

    state, new, _ = one_step(sgd_fn(op), wv_init, labels=None)
    assert len(state.opt_state) == 3
    np.testing.assert_array_equal(new.variables["params"]["v"], 1 - 2)
    np.testing.assert_allclose(np.abs(new.variables["params"]["w"]), 0.1, rtol=1e-3)
    assert new.step == 1


def test_a_loss_may_capture_what_model_fn_computed_from_the_variables():
    """`fake` is an array under differentiation while model_fn runs; it must be usable in the ops afterwards."""

    def op(variables, features, step):
        fake = variables["params"]["w"] * 3.0
        return [
            js.minimize(optax.sgd(1.0), lambda v: (v["params"]["v"][:2] * fake).sum(), of="v"),
            js.minimize(optax.sgd(0.5), of="w", after=lambda v: {"other": {"n": fake.sum(), "i": jnp.int32(1)}}),
        ]

    _, new, _ = one_step(sgd_fn(op), wv_init, labels=None)
    np.testing.assert_array_equal(new.variables["params"]["v"], [-2, -2, 1])
    assert new.variables["other"]["n"] == 6


def test_a_model_that_cannot_be_differentiated_may_apply_its_own_gradients():
    @jax.custom_vjp
    def opaque(x):
        return x

    def forward(x):
        raise NotImplementedError("no gradient")

    opaque.defvjp(forward, lambda *_: None)

    def op(variables, features, step):
        return js.apply_gradients(optax.sgd(1.0), {"w": opaque(variables["params"]["w"]), "v": jnp.zeros(3)})

    _, new, _ = one_step(sgd_fn(op), wv_init, labels=None)
    np.testing.assert_array_equal(new.variables["params"]["w"], 0)

    def minimizing(variables, features, step):
        opaque(variables["params"]["w"])
        return js.minimize(optax.sgd(1.0))

    with pytest.raises(NotImplementedError, match="no gradient"):
        one_step(sgd_fn(minimizing), wv_init, labels=None)


def test_schedules_may_use_the_step():
    def op(variables, features, step):
        return js.minimize(optax.sgd(optax.linear_schedule(1.0, 0.0, 2)(step)), lambda v: v["params"]["w"].sum())

    model_fn = sgd_fn(op)
    state = js.create_train_state(model_fn, wv_init, KEY, X)
    step = jax.jit(js.make_train_step(model_fn))
    seen = []
    for _ in range(3):
        state, _ = step(state, X)
        seen.append(float(state.variables["params"]["w"][0]))
    assert seen == [0, -0.5, -0.5]


def test_optimizers_that_want_the_loss_get_it():
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1)

    def op(variables, features, step):
        return js.minimize(optax.chain(optax.sgd(0.0), plateau))

    model_fn = sgd_fn(op)
    state = js.create_train_state(model_fn, wv_init, KEY, X)
    step = jax.jit(js.make_train_step(model_fn))
    for _ in range(6):
        state, _ = step(state, X)
    assert state.opt_state[1].scale < 1


def test_cross_shard_optimizer_is_another_spelling():
    wrapped = js.CrossShardOptimizer(optax.sgd(0.5), reduction="sum")
    for op in (
        js.minimize(wrapped),
        wrapped.minimize(),
        js.TPUEstimatorSpec("train", loss=jnp.ones(()), train_op=wrapped).train_op,
    ):
        assert op.reduction == "sum"
        assert op.optimizer is wrapped.optimizer
    _, new, _ = one_step(sgd_fn(lambda *_: wrapped), wv_init, labels=None)
    np.testing.assert_array_equal(new.variables["params"]["v"], 0.5)
    assert js.apply_gradients(js.CrossShardOptimizer(optax.sgd(1.0)), {}).reduction == "mean"


REFUSED_OPS = {
    "loss an array": (
        lambda: js.minimize(optax.sgd(1), jnp.ones(())),
        TypeError,
        "loss must be callable, given.*Write a function of the variables",
    ),
    "no optimizer": (lambda: js.minimize(0.1), TypeError, "must be an optax.GradientTransformation, given: 0.1"),
    "reduction": (
        lambda: js.minimize(optax.sgd(1), reduction="max"),
        ValueError,
        "one of 'mean', 'sum' or None, given: 'max'",
    ),
    "cross shard reduction": (
        lambda: js.minimize(js.CrossShardOptimizer(optax.sgd(1), "max")),
        ValueError,
        "one of 'mean', 'sum' or None",
    ),
    "updates": (lambda: js.minimize(optax.sgd(1), updates=3), TypeError, "updates must be a dict of collections"),
    "updates of params": (
        lambda: js.minimize(optax.sgd(1), updates={"params": {}}),
        ValueError,
        "may not hold 'params'",
    ),
    "after": (
        lambda: js.minimize(optax.sgd(1), after=3),
        TypeError,
        "after must be callable, given: 3. Write a function of the updated variables",
    ),
    "no grads": (lambda: js.apply_gradients(optax.sgd(1), None), ValueError, "grads is None"),
    "decay": (lambda: js.ExponentialMovingAverage(2), ValueError, "decay must be between 0 and 1, given: 2"),
}


@pytest.mark.parametrize("case", REFUSED_OPS)
def test_refused_ops(case):
    make, error, text = REFUSED_OPS[case]
    with pytest.raises(error, match=text):
        make()


REFUSED_STEPS = {
    "unknown key": (
        lambda *_: js.minimize(optax.sgd(1.0), of="x"),
        r"of=\['x'\]: variables\['params'\] has no 'x'. The keys are \['v', 'w'\]",
    ),
    "nothing selected": (
        lambda *_: js.minimize(optax.sgd(1.0), of=lambda path: False),
        r"selects nothing.*The paths are \['v', 'w'\]",
    ),
    "unknown collection": (
        lambda *_: js.minimize(optax.sgd(1.0), updates={"ema": {}}),
        r"updates writes the collection 'ema', which init_fn never made; it made \['other', 'params'\]",
    ),
    "another shape": (
        lambda *_: js.minimize(optax.sgd(1.0), updates={"other": {"n": jnp.ones(2), "i": jnp.int32(0)}}),
        r"updates does not fit the variables: other/n: got float32\[2\], expected float32\[\]",
    ),
    "vector loss": (
        lambda *_: js.minimize(optax.sgd(1.0), lambda v: v["params"]["w"]),
        r"the loss of minimize must be scalar, got float32\[2\]",
    ),
}


@pytest.mark.parametrize("case", REFUSED_STEPS)
def test_refused_in_the_step(case):
    make, text = REFUSED_STEPS[case]
    with pytest.raises(ValueError, match=text):
        one_step(sgd_fn(make), wv_init, labels=None)


# model_fn that goes wrong


def model_errors():
    def wrong_type(variables, features, mode):
        return {"loss": 1}

    def wrong_collection(variables, features, mode):
        return js.TPUEstimatorSpec(mode, loss=variables["ema"]["w"], train_op=optax.sgd(1.0))

    def flax_collection(variables, features, mode):
        Net().apply({"params": variables["params"]}, features)

    def no_labels(variables, features, labels, mode):
        return js.TPUEstimatorSpec(mode, loss=(features[:, 0] - labels).mean(), train_op=optax.sgd(1.0))

    def integer_loss(variables, features, mode):
        return js.TPUEstimatorSpec(mode, loss=jnp.int32(3), train_op=optax.sgd(1.0))

    def mismatch(variables, features, mode):
        return js.TPUEstimatorSpec(
            mode, loss=features.mean(), train_op=optax.sgd(1.0), host_call=(lambda a: None, {"b": features})
        )

    def mine(variables, features, mode, params):
        return params["mine"]

    net = js.create_train_state(net_model_fn, Net(), KEY, X, Y).variables
    return {
        "wrong type": (
            wrong_type,
            net,
            ValueError,
            "model_fn should return a TPUEstimatorSpec, got dict from .*wrong_type",
        ),
        "collection": (wrong_collection, net, KeyError, r"'ema'\njaxspec: .*collections \['batch_stats', 'params'\]"),
        "flax collection": (
            flax_collection,
            net,
            flax.errors.ScopeCollectionNotFound,
            r'collection "batch_stats"(.|\n)*jaxspec: .*collections \[\'batch_stats\', \'params\'\]',
        ),
        "no labels": (
            no_labels,
            net,
            TypeError,
            r"NoneType(.|\n)*jaxspec: labels are None here.*yield \(features, labels\)",
        ),
        "integer loss": (integer_loss, net, TypeError, r"loss must be floating to be minimized, got int32\[\]"),
        "keywords": (mismatch, net, TypeError, r"host_call: the tensors do not match.*Tensors: \['b'\].*takes \['a'\]"),
        "own error": (mine, net, KeyError, "mine"),
    }


@pytest.mark.parametrize(
    "case", ["wrong type", "collection", "flax collection", "no labels", "integer loss", "keywords", "own error"]
)
def test_model_fn_that_goes_wrong(case):
    model_fn, variables, error, text = model_errors()[case]
    with pytest.raises(error, match=text):
        js.create_train_state(model_fn, lambda: variables, KEY, X) if case != "integer loss" else one_step(
            model_fn, lambda: variables, labels=None
        )


def test_labels_that_model_fn_does_not_take():
    with pytest.raises(ValueError, match="model_fn does not take labels, but input_fn returns labels"):
        one_step(sgd_fn(lambda *_: js.minimize(optax.sgd(1.0))), wv_init, labels=Y)


# moving averages


def test_ema_follows_the_parameters():
    ema = js.ExponentialMovingAverage(0.9)

    def model_fn(variables, features, labels, mode, step):
        if mode != js.ModeKeys.TRAIN:
            variables = ema.apply(variables)
        spec = linear_model_fn(variables, features, labels, mode)
        if mode == js.ModeKeys.TRAIN:
            spec = spec._replace(train_op=js.minimize(optax.sgd(0.5), after=ema.update(step)))
        return spec

    state = js.create_train_state(model_fn, ema.init(linear_init), KEY, X, Y)
    step = jax.jit(js.make_train_step(model_fn))
    expected = np.asarray(state.variables["params"]["w"])
    for i in range(5):
        state, _ = step(state, X, Y)
        decay = min(0.9, (1 + i) / (10 + i))
        expected = decay * expected + (1 - decay) * np.asarray(state.variables["params"]["w"])
    np.testing.assert_allclose(state.variables["ema"]["params"]["w"], expected, rtol=1e-5)
    averaged = js.make_eval_step(linear_model_fn)(state._replace(variables=ema.apply(state.variables)), X, Y)
    assert js.make_eval_step(model_fn)(state, X, Y).loss == averaged.loss
    with pytest.raises(ValueError, match=r"no collection 'ema', only \['params'\]; make it with init_fn=ema.init"):
        ema.apply({"params": {}})


# the caller's own transformations


def test_the_step_is_pure_and_transforms():
    state = js.create_train_state(net_model_fn, Net(), KEY, X, Y)
    step = js.make_train_step(net_model_fn)
    one = jax.jit(step)(state, X, Y)
    scanned, specs = jax.jit(lambda s, x, y: jax.lax.scan(lambda s, b: step(s, *b), s, (x, y)))(
        state, np.stack([X] * 3), np.stack([Y] * 3)
    )
    assert scanned.step == 3
    np.testing.assert_allclose(specs.loss[0], one[1].loss, rtol=1e-6)
    many = jax.tree.map(lambda x: jnp.stack([x, x]), state)
    both, _ = jax.jit(jax.vmap(step, in_axes=(0, None, None)))(many, X, Y)
    np.testing.assert_allclose(
        both.variables["params"]["Dense_0"]["kernel"][1], one[0].variables["params"]["Dense_0"]["kernel"], rtol=1e-5
    )


def test_unbound_axis_gives_bitwise_what_one_device_gives():
    state = js.create_train_state(net_model_fn, Net(), KEY, X, Y)
    step = js.make_train_step(net_model_fn)
    jitted, spec = jax.jit(step)(state, X, Y)
    mapped, mapped_spec = js.replicate(step, jax.devices()[:1])(state, *js.shard((X, Y), 1))
    assert_trees_equal(jitted, mapped)
    assert spec.loss == mapped_spec.loss
