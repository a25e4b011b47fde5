"""What a step does at its edges: the last step number, callbacks, leaked arrays, strict types, the optimizer's
state."""

import collections
import contextlib
import gc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_models import counting_init, counting_input, counting_model_fn, run_config

import jaxspec as js

X = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
Y = (X @ np.float32([1, 2, 3])).astype(np.float32)
KEY = jax.random.key(0)


def init_fn():
    return {"params": {"w": jnp.zeros(3)}}


def test_the_step_stands_still_at_the_top_of_its_type():
    state = js.create_train_state(counting_model_fn, counting_init, KEY, {"x": X[:, 0]})
    step = jax.jit(js.make_train_step(counting_model_fn))
    state = state._replace(step=jnp.int32(2**31 - 2))
    seen = []
    for _ in range(3):
        state, _ = step(state, {"x": X[:, 0]})
        seen.append(int(state.step))
    assert seen == [2**31 - 1] * 3
    assert float(state.variables["params"]["w"]) == 3


@pytest.mark.parametrize("name", ["steps", "max_steps"])
def test_more_steps_than_there_are_numbers_are_refused(name):
    estimator = js.TPUEstimator(counting_model_fn, counting_init, train_batch_size=4)
    with pytest.raises(ValueError, match=rf"Train {name} should be <= 2147483647, got 2147483648"):
        estimator.train(counting_input(), **{name: 2**31})


@pytest.mark.parametrize("jitted", [False, True])
def test_callbacks_run_once_for_each_step_and_device(jitted):
    """Also where the optimizer depends on the loss, so that its state is made from what model_fn computes."""
    calls = []

    def model_fn(variables, features, mode, step):
        def loss_of(w, features):
            loss = ((w - features) ** 2).mean()
            jax.debug.callback(lambda s, v: calls.append((int(s), round(float(v), 4))), step, loss)
            return loss

        loss = (jax.jit(loss_of) if jitted else loss_of)(variables["params"]["w"], features)
        optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.25 + 0 * loss)
        return js.TPUEstimatorSpec(mode, loss=loss, train_op=js.minimize(optimizer))

    estimator = js.TPUEstimator(
        model_fn, lambda: {"params": {"w": jnp.zeros(())}}, config=run_config(num_shards=4), train_batch_size=8
    )
    estimator.train(lambda: [np.ones(8, np.float32)] * 5)
    assert collections.Counter(calls) == {(i, round(0.25**i, 4)): 4 for i in range(5)}


def test_no_traced_array_outlives_training():
    averages = js.ExponentialMovingAverage(0.9)

    def model_fn(variables, features, labels, mode, step):
        loss = ((features @ variables["params"]["w"] - labels) ** 2).mean()
        optimizer = optax.chain(optax.sgd(0.1 / (1 + loss)), optax.scale_by_schedule(lambda _: 1 / (1 + step)))
        return js.TPUEstimatorSpec(mode, loss=loss, train_op=js.minimize(optimizer, after=averages.update(step)))

    def traced():
        gc.collect()
        return sum(isinstance(x, jax.core.Tracer) for x in gc.get_objects())

    before = traced()
    # The check of JAX 0.12 also counts a tracer that a jaxpr of the step holds until the step's own trace ends.
    for checking in (False, True) if jax.__version_info__ < (0, 12) else (False,):
        with jax.checking_leaks() if checking else contextlib.nullcontext():
            estimator = js.TPUEstimator(
                model_fn, averages.init(init_fn), config=run_config(num_shards=4), train_batch_size=16
            )
            estimator.train(lambda: [(X, Y)] * 2)
        assert traced() <= before  # those of earlier tests may go meanwhile


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_strict_promotion_of_dtypes_and_ranks(dtype):
    averages = js.ExponentialMovingAverage(0.9)

    def model_fn(variables, features, labels, mode, step):
        out = features @ variables["params"]["w"]
        return js.TPUEstimatorSpec(
            mode,
            loss=js.global_mean((out - labels) ** 2),
            train_op=js.minimize(optax.sgd(0.1), after=averages.update(step)),
            host_call=js.summary.host_call(loss=out.mean()),
            eval_metrics=(lambda out: {"n": js.metrics.mean(out)}, [out]),
        )

    x, y = X.astype(dtype), Y.astype(dtype)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        estimator = js.TPUEstimator(
            model_fn,
            averages.init(lambda: {"params": {"w": jnp.zeros(3, dtype)}}),
            config=run_config(num_shards=4),
            train_batch_size=16,
            eval_batch_size=8,
        )
        estimator.train(lambda: [(x, y)] * 2)
        result = estimator.evaluate(js.inputs.numpy_input_fn(x[:13], y[:13]))
    w = np.zeros(3)
    for _ in range(2):
        w = w - 0.1 * 2 * X.T @ (X @ w - Y) / 16
    tolerance = 1e-4 if dtype == np.float32 else 0.1
    np.testing.assert_allclose(result["loss"], np.mean((X[:13] @ w - Y[:13]) ** 2), rtol=tolerance)


@pytest.mark.parametrize("mode", ["eval", "infer"])
def test_model_fn_may_name_the_optimizer_state(mode):
    """Schedule-free SGD is evaluated at other weights than it trains at."""
    optimizer = optax.contrib.schedule_free_sgd(0.3)
    seen = []

    def model_fn(variables, features, labels, mode, opt_state):
        p = variables["params"]
        if mode == js.ModeKeys.TRAIN:
            seen.append(opt_state)
        else:
            p = optax.contrib.schedule_free_eval_params(opt_state, p)
        out = features @ p["w"]
        if mode == js.ModeKeys.PREDICT:
            return js.TPUEstimatorSpec(mode, predictions={"out": out})
        return js.TPUEstimatorSpec(mode, loss=((out - labels) ** 2).mean(), train_op=js.minimize(optimizer))

    state = js.create_train_state(model_fn, init_fn, KEY, X, Y)
    step = jax.jit(js.make_train_step(model_fn))
    for _ in range(3):
        state, _ = step(state, X, Y)
    assert seen == [None] * len(seen)
    b1, z, w = (np.asarray(a) for a in (state.opt_state.b1, state.opt_state.z["w"], state.variables["params"]["w"]))
    right = X @ ((w - (1 - b1) * z) / b1)
    if mode == js.ModeKeys.EVAL:
        loss = js.make_eval_step(model_fn)(state, X, Y).loss
        np.testing.assert_allclose(loss, np.mean((right - Y) ** 2), rtol=1e-4)
        make = js.make_eval_step
    else:
        out = js.make_predict_step(model_fn)(state, X).predictions["out"]
        np.testing.assert_allclose(out, right, rtol=1e-4)
        make = js.make_predict_step
    with pytest.raises(
        ValueError, match=rf"names `opt_state` in mode '{mode}', but there is no.*opt_state=None in its"
    ):
        make(model_fn)(state._replace(opt_state=None), X)


def predictions_fn(variables, features, mode):
    return js.TPUEstimatorSpec(mode, predictions={"p": features * variables["params"]["w"], "s": features.sum()})


def test_gather_of_what_was_not_mapped_is_refused():
    state = js.TrainState(jnp.int32(0), init_fn(), None, KEY)
    step = js.make_predict_step(predictions_fn)
    for spec in (step(state, X), jax.jit(step)(state, X), jax.vmap(step, (None, 0))(state, X[None])):
        with pytest.raises(
            ValueError, match=r"not mapped over the axis 'shards'.*jax.device_get\(spec\) instead of gather"
        ):
            js.gather(spec)


@pytest.mark.parametrize("shards", [1, 4])
def test_gather_of_what_was_mapped(shards):
    state = js.TrainState(jnp.int32(0), {"params": {"w": jnp.ones(3)}}, None, KEY)
    step = js.make_predict_step(predictions_fn)
    devices = jax.devices()[:shards]
    batch = js.shard(X, shards)
    part = jax.sharding.PartitionSpec
    mesh = jax.sharding.Mesh(np.array(devices), (js.SHARD_AXIS,))
    specs = {"in_specs": (part(), part(js.SHARD_AXIS)), "out_specs": part(js.SHARD_AXIS)}

    def leading(state, x):
        return jax.tree.map(lambda a: a[None], step(state, x[0]))

    for mapped in (
        js.replicate(step, devices),
        jax.pmap(step, js.SHARD_AXIS, in_axes=(None, 0), devices=devices),
        jax.vmap(step, (None, 0), axis_name=js.SHARD_AXIS),
        jax.jit(jax.shard_map(leading, mesh=mesh, **specs)),
    ):
        got = js.gather(mapped(state, batch)).predictions
        np.testing.assert_array_equal(got["p"], X)
        np.testing.assert_allclose(got["s"], batch.sum((1, 2)), rtol=1e-5)

    def without_scalar(state, x):
        spec = step(state, x)
        return spec._replace(predictions=spec.predictions["p"])

    concatenated = jax.jit(jax.shard_map(without_scalar, mesh=mesh, **specs))(state, X)
    with pytest.raises(
        ValueError, match=r"predictions is float32\[16,3\], but its leading axis must be that of the . shards"
    ):
        js.gather(concatenated)
