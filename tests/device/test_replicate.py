"""A step mapped over devices: one state, whole batches, bounded work in flight."""

import gc
import subprocess
import sys
import textwrap
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from insides import programs
from tiny_models import (
    Net,
    assert_same_on_all_devices,
    assert_trees_equal,
    counting_init,
    counting_input,
    counting_model_fn,
    data,
    linear_init,
    linear_model_fn,
    net_model_fn,
    run_config,
)

import jaxspec as js
from jaxspec._src.device.devices import choose_devices, describe_devices
from jaxspec._src.device.mapping import broadcast, map_over_devices
from jaxspec._src.device.program import Program
from jaxspec._src.step.inference_step import eval_step
from jaxspec._src.step.model import Model
from jaxspec._src.step.train_step import train_step

X, Y = data(rows=16)
KEY = jax.random.key(0)


def fresh(model_fn=net_model_fn, init_fn=None, rows=4):
    return js.create_train_state(model_fn, init_fn or Net(), KEY, X[:rows], Y[:rows])


def test_shard_splits_in_order_and_gather_puts_together():
    features, _ = js.shard((X, Y), 4)
    assert features.shape == (4, 4, 4)
    np.testing.assert_array_equal(features[1], X[4:8])
    assert features.base is not None  # no copy
    spec = js.TPUEstimatorSpec(
        "eval", loss=jnp.float32(2), eval_metrics=(lambda a, b: {}, [jnp.asarray(features), jnp.arange(4)])
    )
    whole = js.gather(spec)
    np.testing.assert_array_equal(whole.eval_metrics[1][0], X)
    np.testing.assert_array_equal(whole.eval_metrics[1][1], [0, 1, 2, 3])
    assert isinstance(whole.eval_metrics[1][0], np.ndarray)


def test_shard_of_what_does_not_divide():
    with pytest.raises(
        ValueError, match=r"shard: leaf \['x'\] is float32\[16,4\]; its leading size must be .* shards, 3"
    ):
        js.shard({"x": X}, 3)


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


def stacked(steps, shards, copies=1):
    """`steps` different batches as a Program takes them."""
    x, y = data(rows=16 * steps, seed=3)
    return tuple(a.reshape(steps, shards, 16 // shards, *a.shape[1:]) for a in (x, y))


@pytest.mark.parametrize("shards", [1, 4])
def test_loops_of_any_length_and_capacity_are_bitwise_equal(shards):
    devices = jax.devices()[:shards]
    batches = stacked(12, shards)
    results = []
    for capacity, lengths in ((12, [12]), (12, [1, 4, 7]), (4, [4, 4, 4]), (1, [1] * 12)):
        loop = Program(train_step(Model(net_model_fn, {})), devices, trains=True)
        state, at, losses = broadcast(fresh(), devices), 0, []
        for length in lengths:
            first = at // capacity * capacity
            part = jax.tree.map(lambda x, first=first, capacity=capacity: x[first : first + capacity], batches)
            state, spec = loop(state, part, at - first, at - first + length)
            losses += list(np.asarray(spec.loss)[at - first : at - first + length])
            at += length
        results.append((losses, state))
    for losses, state in results[1:]:
        np.testing.assert_array_equal(losses, results[0][0])
        assert_trees_equal(state, results[0][1])


def test_a_loop_traces_model_fn_once_and_compiles_once():
    traces = []

    def model_fn(variables, features, labels, mode):
        traces.append(mode)
        return linear_model_fn(variables, features, labels, mode)

    loop = Program(train_step(Model(model_fn, {})), jax.devices(), trains=True)
    state = broadcast(fresh(linear_model_fn, linear_init), jax.devices())
    batches = stacked(5, 4)
    with jax.log_compiles(False):
        for start, stop in ((0, 5), (0, 1), (2, 4)):
            state, _ = loop(state, batches, start, stop)
    assert traces == ["train"]
    assert int(state.step) == 8


def test_the_state_of_a_training_loop_is_donated_and_that_of_others_is_not():
    state = broadcast(fresh(), jax.devices())
    Program(eval_step(Model(net_model_fn, {})), jax.devices(), trains=False)(
        state, (*stacked(1, 4), np.zeros((1, 4, 2), np.int32)), 0, 1
    )
    assert not state.variables["params"]["Dense_0"]["kernel"].is_deleted()
    Program(train_step(Model(net_model_fn, {})), jax.devices(), trains=True)(state, stacked(1, 4), 0, 1)
    assert state.variables["params"]["Dense_0"]["kernel"].is_deleted()


def test_choosing_devices():
    assert len(choose_devices(use_tpu=True, num_shards=None)) == 4
    assert len(choose_devices(use_tpu=True, num_shards=2)) == 2
    assert len(choose_devices(use_tpu=False, num_shards=2)) == 1
    with pytest.raises(ValueError, match=r"num_shards is 8, but there are only 4 x cpu.*Lower it, or leave it as None"):
        choose_devices(use_tpu=True, num_shards=8)
    assert describe_devices(jax.devices()) == "4 x cpu (no accelerator found)"


@pytest.mark.slow(reason="six thousand steps on eight devices, in a process of its own")
def test_three_thousand_steps_on_eight_devices_do_not_deadlock():
    """Neither a hand-written loop over `replicate` that never waits, nor the estimator with one step a loop."""
    program = """
        import os
        os.environ.update(JAX_PLATFORMS="cpu", XLA_FLAGS="--xla_force_host_platform_device_count=8")
        import jax, numpy as np
        import jaxspec as js
        from tiny_models import counting_init, counting_input, counting_model_fn, run_config

        x = {"x": np.zeros(8, np.float32)}
        state = js.create_train_state(counting_model_fn, counting_init, jax.random.key(0), x)
        step = js.replicate(js.make_train_step(counting_model_fn), donate_state=True)
        for _ in range(3000):
            state, _ = step(state, js.shard(x, 8))
        assert int(state.step) == 3000, state.step
        estimator = js.TPUEstimator(counting_model_fn, counting_init, config=run_config(every=1), train_batch_size=8)
        estimator.train(counting_input(rows=8), steps=3000)
        assert estimator.get_variable_value("params/w") == 3000
        print("done", len(jax.devices()))
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=__file__.rpartition("/")[0],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.stdout == "done 8\n", ran.stderr[-2000:]


@pytest.mark.parametrize("shards", [1, 4])
def test_the_mapping_is_that_of_pmap_bit_for_bit(shards):
    """A loop with a dynamic trip count, collectives and random keys in its body."""
    devices = jax.devices()[:shards]

    def run(state, batches, start, stop):
        def body(i, carry):
            w, key, losses = carry
            key, used = jax.random.split(key)
            x = jax.lax.dynamic_index_in_dim(batches, i, keepdims=False)
            x = x + jax.random.normal(jax.random.fold_in(used, jax.lax.axis_index(js.SHARD_AXIS)), x.shape)
            loss, grad = jax.value_and_grad(lambda w: jnp.sin(x @ w).mean())(w)
            w = w - jax.lax.pmean(grad, js.SHARD_AXIS)
            return w, key, losses.at[i].set(loss)

        w, key, losses = jax.lax.fori_loop(start, stop, body, (*state, jnp.zeros(5)))
        return (w, key), losses

    axes = {"in_axes": (None, 1, None, None), "out_axes": (None, 1)}
    batches = np.random.default_rng(0).normal(size=(5, shards, 3, 2)).astype(np.float32)
    results = []
    for program in (
        map_over_devices(run, devices, **axes),
        jax.pmap(run, axis_name=js.SHARD_AXIS, devices=devices, **axes),
    ):
        state = (jnp.ones(2), jax.random.key(7))
        for start, stop in ((0, 2), (2, 5)):
            state, losses = program(state, batches, np.int32(start), np.int32(stop))
        assert losses.shape == (5, shards)
        results.append((state, losses))
    assert_trees_equal(*results)


def test_a_dropped_estimator_gives_its_memory_back(tmp_path):
    estimator = js.TPUEstimator(
        counting_model_fn,
        counting_init,
        model_dir=tmp_path,
        config=run_config(save=1000),
        train_batch_size=4,
        eval_batch_size=4,
    )
    estimator.train(counting_input(), steps=2)
    estimator.evaluate(counting_input(1))
    made = [weakref.ref(program) for program in programs(estimator)]
    assert len(made) == 2
    del estimator
    gc.collect()
    assert [program() for program in made] == [None, None]
