"""A step mapped over devices: one state, whole batches, bounded work in flight."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_models import (
    Net,
    assert_same_on_all_devices,
    data,
    linear_init,
    linear_model_fn,
    net_model_fn,
)

import jaxspec as js

X, Y = data(rows=16)
KEY = jax.random.key(0)


def fresh(model_fn=net_model_fn, init_fn=None, rows=4):
    return js.create_train_state(model_fn, init_fn or Net(), KEY, X[:rows], Y[:rows])


def test_a_batch_that_is_not_sharded_is_refused():
    step = js.replicate(js.make_train_step(linear_model_fn))
    with pytest.raises(
        ValueError, match=r"batch leaf 0 is float32\[16,4\], but the step is mapped over 4 devices.*shard\("
    ):
        step(fresh(linear_model_fn, linear_init), X, Y)


def test_own_loop_over_four_devices_equals_one():
    losses = {}
    for n in (1, 4):
        state = fresh(linear_model_fn, linear_init)
        step = js.replicate(js.make_train_step(linear_model_fn), jax.devices()[:n])
        evaluate = js.replicate(js.make_eval_step(linear_model_fn), jax.devices()[:n])
        predict = js.replicate(js.make_predict_step(linear_model_fn), jax.devices()[:n])
        for _ in range(5):
            state, spec = step(state, *js.shard((X, Y), n))
        host = js.gather(evaluate(state, *js.shard((X, Y), n)))
        predictions = js.gather(predict(state, js.shard(X, n))).predictions["logits"]
        assert state.variables["params"]["w"].shape == (4, 3)  # no device axis
        assert js.gather(spec).loss.shape == ()
        assert host.as_estimator_spec().eval_metric_ops["accuracy"].compute() == np.mean(predictions.argmax(-1) == Y)
        losses[n] = [host.loss, *predictions.ravel(), *np.ravel(state.variables["params"]["w"])]
    np.testing.assert_allclose(losses[1], losses[4], rtol=1e-5, atol=1e-7)


def test_donating_the_state_leaves_the_callers_first_state_alone():
    state = fresh()
    kernel = np.array(state.variables["params"]["Dense_0"]["kernel"])
    step = js.replicate(js.make_train_step(net_model_fn), donate_state=True)
    new, _ = step(state, *js.shard((X, Y), 4))
    newer, _ = step(new, *js.shard((X, Y), 4))
    np.testing.assert_array_equal(state.variables["params"]["Dense_0"]["kernel"], kernel)
    assert new.variables["params"]["Dense_0"]["kernel"].is_deleted()
    assert int(newer.step) == 2


def test_state_is_one_after_ten_steps():
    """Shards differ in batch, dropout and batch statistics, yet no leaf may."""

    def model_fn(variables, features, labels, mode, params, rng):
        spec = net_model_fn(variables["net"] | {"params": variables["params"]}, features, labels, mode, params, rng)
        op = spec.train_op
        count = variables["count"] + jax.lax.axis_index(js.SHARD_AXIS)
        return spec._replace(
            train_op=js.minimize(
                optax.adam(1e-2),
                updates={"net": op.updates, "count": count, "key": jax.random.fold_in(rng, 1)},
                after=lambda v: {"shard": jax.lax.axis_index(js.SHARD_AXIS).astype(jnp.float32)},
            )
        )

    def init_fn(rng, features):
        v = Net().init(rng, features)
        return {
            "params": v["params"],
            "net": {"batch_stats": v["batch_stats"]},
            "count": jnp.int32(0),
            "key": jax.random.key(1),
            "shard": jnp.float32(0),
        }

    for fn, init in ((net_model_fn, Net()), (model_fn, init_fn)):
        state = fresh(fn, init)
        step = js.replicate(js.make_train_step(fn))
        for _ in range(10):
            state, _ = step(state, *js.shard((X, Y), 4))
        assert_same_on_all_devices(state, 4)
    assert state.variables["count"] == 0  # shard 0's
    assert state.variables["shard"] == 1.5  # the mean of 0, 1, 2, 3


@pytest.mark.parametrize("reduction", ["mean", "sum", None])
def test_reduction_of_gradients(reduction):
    def model_fn(variables, features, mode):
        loss = variables["params"]["w"] * features.mean()
        return js.TPUEstimatorSpec(mode, loss=loss, train_op=js.minimize(optax.sgd(1.0), reduction=reduction))

    x = np.arange(4, dtype=np.float32) + 1
    state = js.create_train_state(model_fn, lambda: {"params": {"w": jnp.zeros(())}}, KEY, x[:1])
    state, _ = js.replicate(js.make_train_step(model_fn))(state, js.shard(x, 4))
    expected = {"mean": 2.5, "sum": 10, None: 1}[reduction]
    assert state.variables["params"]["w"] == -expected
    assert_same_on_all_devices(state, 4)


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_weighted_loss_through_global_mean_does_not_depend_on_shards(shards):
    weights = np.random.default_rng(1).uniform(0, 1, 16).astype(np.float32) * (np.arange(16) % 3 > 0)

    def model_fn(variables, features, labels, mode):
        errors = (features["x"] @ variables["params"]["w"]).sum(-1) ** 2
        loss = js.global_mean(errors, features["weights"])
        return js.TPUEstimatorSpec(mode, loss=loss, train_op=js.minimize(optax.sgd(0.1)))

    batch = {"x": X, "weights": weights}
    state = js.create_train_state(model_fn, linear_init, KEY, jax.tree.map(lambda x: x[:4], batch), Y[:4])
    w = np.asarray(state.variables["params"]["w"])
    new, spec = js.replicate(js.make_train_step(model_fn), jax.devices()[:shards])(state, *js.shard((batch, Y), shards))
    errors = (X @ w).sum(-1)
    np.testing.assert_allclose(spec.loss, np.average(errors**2, weights=weights), rtol=1e-5)
    gradient = (weights * 2 * errors / weights.sum()) @ X
    np.testing.assert_allclose(new.variables["params"]["w"], w - 0.1 * gradient[:, None], rtol=1e-4, atol=1e-6)
