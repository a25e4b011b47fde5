"""The pure steps give the same answer under every mapping a user may choose."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tiny_models import assert_trees_equal, plain

import jaxspec as js

ROWS = 8
RNG = np.random.default_rng(0)
X = RNG.normal(size=(ROWS, 3)).astype(np.float32)
Y = RNG.normal(size=ROWS).astype(np.float32)
W = np.float32([0.5, -1.0, 2.0])


def init_fn():
    return {
        "params": {"w": jnp.asarray(W), "v": jnp.ones(3)},
        "stats": {"mean": jnp.zeros(3), "count": jnp.int32(5), "flag": jnp.bool_(False), "key": jax.random.key(3)},
    }


def squares(variables, features, labels, name="w"):
    return ((features @ variables["params"][name] - labels) ** 2).mean()


def gradient(w):
    """Of the mean of the squares of the whole batch, by NumPy."""
    return 2 * X.T @ (X @ w - Y) / ROWS


def new_stats(variables, features):
    return {
        "mean": features.mean(0),
        "count": variables["stats"]["count"] + 2,
        "flag": jnp.bool_(True),
        "key": variables["stats"]["key"],
    }


def train_op(kind, variables, features, labels):
    sgd = optax.sgd(0.1)
    if kind == "own loss":
        return js.minimize(sgd, lambda v: squares(v, features, labels), of="w")
    if kind == "spec loss":
        return js.minimize(sgd)
    if kind == "sum":
        return js.minimize(sgd, reduction="sum")
    if kind == "apply_gradients":
        grads = jax.grad(lambda p: squares({"params": p}, features, labels))(variables["params"])
        return js.apply_gradients(sgd, grads)
    if kind == "updates":
        return js.minimize(sgd, updates={"stats": new_stats(variables, features)})
    if kind == "after":
        return js.minimize(sgd, after=lambda v: {"stats": new_stats(v, features * v["params"]["w"])})
    if kind == "two":
        return [
            js.minimize(sgd, of="w"),
            js.minimize(sgd, lambda v: squares(v, features, labels, "v") * v["params"]["w"].sum(), of="v"),
        ]
    raise AssertionError(kind)


def expected(kind, shards):
    """(w, v, mean, count, flag) after one step."""
    w = W - 0.1 * gradient(W) * (shards if kind == "sum" else 1)
    v = np.ones(3, np.float32)
    if kind == "two":
        v = v - 0.1 * gradient(v) * w.sum()
    if kind == "updates":
        return w, v, X.mean(0), 7, True
    if kind == "after":
        return w, v, (X * w).mean(0), 7, True
    return w, v, np.zeros(3), 5, False


def make_model_fn(kind):
    def model_fn(variables, features, labels, mode):
        out = features @ variables["params"]["w"]
        if mode == js.ModeKeys.PREDICT:
            return js.TPUEstimatorSpec(mode, predictions={"out": out, "sum": features.sum()})
        return js.TPUEstimatorSpec(
            mode,
            loss=squares(variables, features, labels),
            train_op=None if mode != js.ModeKeys.TRAIN else train_op(kind, variables, features, labels),
            eval_metrics=(lambda out: {}, [out]),
        )

    return model_fn


def mesh(shards, axis=js.SHARD_AXIS):
    return Mesh(np.array(jax.devices()[:shards]), (axis,))


def whole(fn, shards):
    """`fn(state, x, y) -> (the same on all shards, of each shard)` on the whole batch."""
    return jax.jit(fn)


def with_shard_map(check_vma):
    def make(fn, shards):
        specs = {"in_specs": (P(), P(js.SHARD_AXIS), P(js.SHARD_AXIS)), "out_specs": (P(), P(js.SHARD_AXIS))}
        return jax.jit(jax.shard_map(fn, mesh=mesh(shards), check_vma=check_vma, **specs))

    return make


def split(fn, mapped, shards):
    def call(state, x, y):
        x, y = js.shard((x, y), shards)
        same, each = mapped(state, x, y)
        return same, jax.tree.map(lambda a: a.reshape(-1), each)

    return call


def with_vmap(fn, shards):
    return split(fn, jax.jit(jax.vmap(fn, (None, 0, 0), (None, 0), axis_name=js.SHARD_AXIS)), shards)


def with_pmap(fn, shards):
    devices = jax.devices()[:shards]
    mapped = jax.pmap(fn, js.SHARD_AXIS, in_axes=(None, 0, 0), out_axes=(None, 0), devices=devices)
    return split(fn, mapped, shards)


def with_sharded_inputs(fn, shards):
    def call(state, x, y):
        over = NamedSharding(mesh(shards, "data"), P("data"))
        state = jax.device_put(state, NamedSharding(mesh(shards, "data"), P()))
        return jax.jit(fn)(state, jax.device_put(x, over), jax.device_put(y, over))

    return call


MAPPINGS = {
    "jit": whole,
    "sharded inputs": with_sharded_inputs,
    "vmap": with_vmap,
    "pmap": with_pmap,
    "shard_map": with_shard_map(True),
    "shard_map without check_vma": with_shard_map(False),
}
KINDS = ("own loss", "spec loss", "sum", "apply_gradients", "updates", "after", "two")


def fresh(model_fn, init=init_fn):
    return js.create_train_state(model_fn, init, jax.random.key(0), X[:2], Y[:2])


def trained(step):
    """The step as `fn(state, x, y) -> (what is the same on all shards, what is of each shard)`."""

    def fn(state, x, y):
        new, spec = step(state, x, y)
        return (plain(new), spec.loss), ()

    return fn


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("mapping", MAPPINGS)
def test_training_is_that_of_the_whole_batch(mapping, shards):
    for kind in KINDS:
        model_fn = make_model_fn(kind)
        step = trained(js.make_train_step(model_fn))
        (state, loss), _ = MAPPINGS[mapping](step, shards)(fresh(model_fn), X, Y)
        seen = 1 if mapping in ("jit", "sharded inputs") else shards
        w, v, mean, count, flag = expected(kind, seen)
        stats = state.variables["stats"]
        np.testing.assert_allclose(loss, np.mean((X @ W - Y) ** 2), rtol=1e-5, err_msg=kind)
        np.testing.assert_allclose(state.variables["params"]["w"], w, rtol=1e-5, err_msg=kind)
        np.testing.assert_allclose(state.variables["params"]["v"], v, rtol=1e-5, err_msg=kind)
        np.testing.assert_allclose(stats["mean"], mean, rtol=1e-5, atol=1e-6, err_msg=kind)
        assert (int(state.step), int(stats["count"]), bool(stats["flag"])) == (1, count, flag), kind
        np.testing.assert_array_equal(stats["key"], jax.random.key_data(jax.random.key(3)))


@pytest.mark.parametrize("mapping", ["vmap", "pmap", "shard_map", "shard_map without check_vma"])
def test_a_loss_that_model_fn_has_averaged_itself(mapping):
    def model_fn(variables, features, labels, mode):
        loss = jax.lax.pmean(squares(variables, features, labels), js.SHARD_AXIS)
        own = js.minimize(
            optax.sgd(0.1), lambda v: jax.lax.pmean(squares(v, features, labels, "v"), js.SHARD_AXIS), of="v"
        )
        return js.TPUEstimatorSpec(mode, loss=loss, train_op=[js.minimize(optax.sgd(0.1), of="w"), own])

    (state, _), _ = MAPPINGS[mapping](trained(js.make_train_step(model_fn)), 4)(fresh(model_fn), X, Y)
    np.testing.assert_allclose(state.variables["params"]["w"], W - 0.1 * gradient(W), rtol=1e-5)
    np.testing.assert_allclose(state.variables["params"]["v"], 1 - 0.1 * gradient(np.ones(3)), rtol=1e-5)


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_several_steps_in_one_program(mapping):
    """A scan, and a fori_loop with a trip count that is an argument."""
    model_fn = make_model_fn("updates")
    step = js.make_train_step(model_fn)

    def scanned(state, x, y):
        state, losses = jax.lax.scan(lambda s, _: (lambda new: (new[0], new[1].loss))(step(s, x, y)), state, length=3)
        return (plain(state), losses[-1]), ()

    def looped(state, x, y):
        state = jax.lax.fori_loop(0, state.step + 3, lambda _, s: step(s, x, y)[0], state)
        return (plain(state), jnp.float32(0)), ()

    w = W
    for _ in range(3):
        last = np.mean((X @ w - Y) ** 2)
        w = w - 0.1 * gradient(w)
    for fn in (scanned, looped):
        (state, loss), _ = MAPPINGS[mapping](fn, 4)(fresh(model_fn), X, Y)
        np.testing.assert_allclose(state.variables["params"]["w"], w, rtol=1e-4)
        assert (int(state.step), int(state.variables["stats"]["count"])) == (3, 11)
        if fn is scanned:
            np.testing.assert_allclose(loss, last, rtol=1e-4)


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_evaluation_and_prediction(mapping):
    model_fn = make_model_fn("spec loss")
    evaluate, predict = js.make_eval_step(model_fn), js.make_predict_step(model_fn)

    def evaluated(state, x, y):
        spec = evaluate(state, x, y)
        return spec.loss, spec.eval_metrics[1][0]

    def predicted(state, x, y):
        return (), predict(state, x).predictions["out"]

    state = fresh(model_fn)
    loss, out = MAPPINGS[mapping](evaluated, 4)(state, X, Y)
    np.testing.assert_allclose(loss, np.mean((X @ W - Y) ** 2), rtol=1e-5)
    np.testing.assert_allclose(out, X @ W, rtol=1e-5)
    np.testing.assert_allclose(MAPPINGS[mapping](predicted, 4)(state, X, Y)[1], X @ W, rtol=1e-5)


@pytest.mark.parametrize("mapping", ["vmap", "pmap", "shard_map", "shard_map without check_vma"])
def test_what_is_not_floating_is_that_of_shard_0_bit_for_bit(mapping):
    """Also gradients that are the same already (`reduction=None`): no zero loses its sign."""
    values = {
        "int": jnp.int32([-(2**31), 2**31 - 1]),
        "small": jnp.int8([-128, 127]),
        "unsigned": jnp.uint8([0, 255]),
        "flags": jnp.array([True, False]),
        "key": jax.random.split(jax.random.key(5), 2),
    }

    def model_fn(variables, features, labels, mode):
        shard = jax.lax.axis_index(js.SHARD_AXIS)

        def mine(x):
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
                return jax.random.wrap_key_data(jax.random.key_data(x) + shard.astype(jnp.uint32))
            return jnp.where(shard == 0, x, jnp.zeros_like(x))

        keep = optax.GradientTransformation(
            lambda p: {"g": jnp.zeros((2,)), "h": jnp.zeros((2,), jnp.bfloat16)}, lambda g, s, p=None: (g, g)
        )
        grads = {"g": jnp.where(shard == 0, jnp.float32([-0.0, 1e-45]), 7.0), "h": jnp.bfloat16([-0.0, jnp.inf])}
        return js.TPUEstimatorSpec(
            mode,
            loss=squares({"params": {"w": jnp.ones(3)}}, features, labels),
            train_op=js.apply_gradients(
                keep, grads, reduction=None, updates={"values": jax.tree.map(mine, variables["values"])}
            ),
        )

    def init():
        return {
            "params": {"g": jnp.zeros(2), "h": jnp.zeros(2, jnp.bfloat16)},
            "values": jax.tree.map(jnp.copy, values),
        }

    (state, _), _ = MAPPINGS[mapping](trained(js.make_train_step(model_fn)), 4)(fresh(model_fn, init), X, Y)
    assert_trees_equal(state.variables["values"], values)
    assert np.asarray(state.opt_state["g"]).view(np.uint32).tolist() == [0x80000000, 1]
    assert np.asarray(state.opt_state["h"]).view(np.uint16).tolist() == [0x8000, 0x7F80]


@pytest.mark.parametrize("mapping", ["vmap", "pmap", "shard_map", "shard_map without check_vma"])
def test_an_optimizer_made_from_the_loss_of_a_shard_leaves_one_state(mapping):
    """The learning rate is averaged over shards; what is the same on all of them already is taken as it is."""

    def model_fn(variables, features, labels, mode, step):
        loss = squares(variables, features, labels)
        optimizer = optax.chain(optax.clip(1e9), optax.chain(optax.sgd(0.1 / (1.0 + loss))))
        return js.TPUEstimatorSpec(mode, loss=loss, train_op=js.minimize(optimizer, of="w"))

    (state, _), _ = MAPPINGS[mapping](trained(js.make_train_step(model_fn)), 4)(fresh(model_fn), X, Y)
    rates = [0.1 / (1 + np.mean((x @ W - y) ** 2)) for x, y in zip(*js.shard((X, Y), 4), strict=True)]
    np.testing.assert_allclose(state.variables["params"]["w"], W - np.mean(rates) * gradient(W), rtol=1e-5)
    for leaf in jax.tree.leaves(plain(state)):
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(shard.data, leaf)
