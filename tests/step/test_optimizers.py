"""Optimizers that want more than gradients, inside any other: one state over shards, the numbers of one device."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_models import assert_same_on_all_devices, run_config

import jaxspec as js

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 3)).astype(np.float32)
Y = (X @ np.float32([1, -2, 3]) + 0.1 * RNG.normal(size=16)).astype(np.float32)

pytestmark = pytest.mark.slow(
    reason="optimizers that trace the loss again and again, each compiled on one shard and on several"
)


def loss_of(params, x, y):
    return ((x @ params["w"] + params["b"] - y) ** 2).mean()


def make_model_fn(optimizer, own_loss=False):
    def model_fn(variables, features, labels, mode):
        loss = loss_of(variables["params"], features, labels)
        own = (lambda v: loss_of(v["params"], features, labels)) if own_loss else None
        return js.TPUEstimatorSpec(mode, loss=loss, train_op=js.minimize(optimizer, own))

    return model_fn


def init_fn():
    return {"params": {"w": jnp.zeros(3), "b": jnp.zeros(())}}


OPTIMIZERS = {
    "lbfgs in a chain": optax.chain(optax.clip_by_global_norm(100.0), optax.lbfgs()),
    "lbfgs in MultiSteps": optax.MultiSteps(optax.lbfgs(), 1),
    "apply_if_finite": optax.apply_if_finite(optax.adam(0.1), 3),
    "backtracking": optax.chain(
        optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=15, store_grad=True)
    ),
    "polyak": optax.polyak_sgd(max_learning_rate=0.1),
    "inject_hyperparams": optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
    "schedule_free": optax.contrib.schedule_free_sgd(0.1),
}


def by_optax(optimizer, steps):
    """The same by optax alone, on the whole batch, not jitted as one program."""
    params = init_fn()["params"]
    state = optimizer.init(params)

    def value_fn(p):
        return loss_of(p, X, Y)

    @jax.jit
    def step(params, state):
        value, grad = jax.value_and_grad(value_fn)(params)
        update = optimizer.update
        if isinstance(optimizer, optax.GradientTransformation):
            update = optax.with_extra_args_support(optimizer).update
        changes, state = update(grad, state, params, value=value, grad=grad, value_fn=value_fn)
        return optax.apply_updates(params, changes), state

    for _ in range(steps):
        params, state = step(params, state)
    return params


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_gives_the_weights_that_optax_gives_and_goes_on_from_a_checkpoint(name, tmp_path):
    """Slow for L-BFGS: its line search is a loop inside a loop, compiled with and without jaxspec."""
    optimizer = OPTIMIZERS[name]
    expected = by_optax(optimizer, 4)
    model_fn = make_model_fn(optimizer)

    def estimator():
        return js.TPUEstimator(
            model_fn, init_fn, model_dir=tmp_path, config=run_config(save=2, num_shards=4), train_batch_size=16
        )

    estimator().train(lambda: [(X, Y)] * 2)
    again = estimator().train(lambda: [(X, Y)] * 2)
    for key, value in expected.items():
        np.testing.assert_allclose(again.get_variable_value(f"params/{key}"), value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("own_loss", [False, True])
@pytest.mark.parametrize("check_vma", [False, True])
def test_a_line_search_sees_the_loss_of_the_whole_batch_on_every_shard(check_vma, own_loss):
    model_fn = make_model_fn(optax.lbfgs(), own_loss)
    step = js.make_train_step(model_fn)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), (js.SHARD_AXIS,))
    part = jax.sharding.PartitionSpec
    mapped = jax.jit(
        jax.shard_map(
            lambda s, x, y: step(s, x, y)[0],
            mesh=mesh,
            in_specs=(part(), part(js.SHARD_AXIS), part(js.SHARD_AXIS)),
            out_specs=part(),
            check_vma=check_vma,
        )
    )
    state = js.create_train_state(model_fn, init_fn, jax.random.key(0), X[:4], Y[:4])
    for _ in range(4):
        state = mapped(state, X, Y)
    expected = by_optax(optax.lbfgs(), 4)
    np.testing.assert_allclose(state.variables["params"]["w"], expected["w"], rtol=1e-3, atol=1e-4)
    assert_same_on_all_devices(state, 4)


@pytest.mark.parametrize("depth", [0, 1, 8])
def test_a_learning_rate_may_be_computed_from_the_loss_inside_any_chain(depth):
    def model_fn(variables, features, labels, mode):
        loss = loss_of(variables["params"], features, labels)
        optimizer = optax.sgd(0.1 / (1 + loss))
        for _ in range(depth):
            optimizer = optax.chain(optax.clip(1e9), optimizer)
        return js.TPUEstimatorSpec(mode, loss=loss, train_op=js.minimize(optimizer))

    state = js.create_train_state(model_fn, init_fn, jax.random.key(0), X, Y)
    for debug in (False, True):
        with jax.disable_jit(debug):
            new, _ = js.make_train_step(model_fn)(state, X, Y)
        rate = 0.1 / (1 + np.mean(Y**2))
        np.testing.assert_allclose(new.variables["params"]["w"], rate * 2 * X.T @ Y / len(Y), rtol=1e-5)


@pytest.mark.parametrize("reduction", ["sum", None])
def test_a_reduction_inside_another_transformation_is_refused(reduction):
    inner = js.CrossShardOptimizer(optax.sgd(1.0), reduction)
    for outer in (optax.chain(optax.clip(1.0), inner), optax.MultiSteps(inner, 2), optax.apply_if_finite(inner, 2)):
        with pytest.raises(
            ValueError, match=r"inside another transformation.*Wrap the whole: CrossShardOptimizer\(optax.chain"
        ):
            js.create_train_state(make_model_fn(outer), init_fn, jax.random.key(0), X, Y)
    mean = optax.chain(optax.clip(1e9), js.CrossShardOptimizer(optax.sgd(0.5)))
    for outer, factor in ((js.CrossShardOptimizer(optax.sgd(0.5), "sum"), 4), (mean, 1)):
        model_fn = make_model_fn(outer)
        state = js.create_train_state(model_fn, init_fn, jax.random.key(0), X[:4], Y[:4])
        state, _ = js.replicate(js.make_train_step(model_fn))(state, *js.shard((X, Y), 4))
        np.testing.assert_allclose(state.variables["params"]["w"], 0.5 * factor * 2 * X.T @ Y / 16, rtol=1e-5)
