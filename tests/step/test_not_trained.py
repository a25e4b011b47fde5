"""What nobody updates is told when the step is traced; what is meant to stand still is not."""

import logging

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxspec as js

X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
Y = X.sum(1)
KEY = jax.random.key(0)


def warnings(caplog, model_fn, init_fn):
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="jaxspec"):
        js.create_train_state(model_fn, init_fn, KEY, X, Y)
    return [record.getMessage() for record in caplog.records]


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(1)(nn.BatchNorm(use_running_average=not train)(x))[:, 0]


def squares(out, labels):
    return ((out - labels) ** 2).mean()


@pytest.mark.parametrize("jitted", [False, True])
def test_batch_statistics_that_are_not_handed_over(caplog, jitted):
    def make(hand_over, frozen=False):
        def model_fn(variables, features, labels, mode):
            def apply(variables, features):
                if frozen:
                    return Net().apply(variables, features), None
                return Net().apply(variables, features, train=True, mutable=["batch_stats"])

            out, updates = (jax.jit(apply) if jitted else apply)(variables, features)
            op = js.minimize(optax.adam(0.1), updates=updates if hand_over else None)
            return js.TPUEstimatorSpec(mode, loss=squares(out, labels), train_op=op)

        return model_fn

    (text,) = warnings(caplog, make(False), Net())
    assert "The collection 'batch_stats' is never updated" in text
    assert "batch_stats/BatchNorm_0/mean" in text
    assert "minimize(..., updates=updates)" in text
    assert warnings(caplog, make(True), Net()) == []
    assert warnings(caplog, make(False, frozen=True), Net()) == []


def test_moving_averages_that_are_not_updated(caplog):
    averages = js.ExponentialMovingAverage(0.9)

    def make(after):
        def model_fn(variables, features, labels, mode, step):
            out = Net().apply(averages.apply(variables) if mode != js.ModeKeys.TRAIN else variables, features)
            op = js.minimize(optax.sgd(0.1), after=averages.update(step) if after else None)
            return js.TPUEstimatorSpec(mode, loss=squares(out, labels), train_op=op)

        return model_fn

    (text,) = warnings(caplog, make(False), averages.init(Net()))
    assert "moving averages in the collection 'ema' are never updated" in text
    assert "after=averages.update(step)" in text
    assert warnings(caplog, make(True), averages.init(Net())) == []


def test_new_values_of_a_plain_collection(caplog):
    def init_fn():
        return {"params": {"w": jnp.zeros(3)}, "state": {"n": jnp.int32(0), "mean": jnp.zeros(3)}}

    def make(train_op):
        def model_fn(variables, features, labels, mode):
            old = variables["state"]
            new = {"n": old["n"] + 1, "mean": 0.9 * old["mean"] + 0.1 * features.mean(0)}
            loss = squares(features @ variables["params"]["w"], labels)
            return js.TPUEstimatorSpec(mode, loss=loss, train_op=train_op(new, features, labels))

        return model_fn

    (text,) = warnings(caplog, make(lambda new, *_: js.minimize(optax.sgd(0.1))), init_fn)
    assert "'state' is never updated: model_fn computes new values of it (state/mean, state/n)" in text
    for op in (
        lambda new, *_: js.minimize(optax.sgd(0.1), updates={"state": new}),
        lambda new, *_: js.minimize(optax.sgd(0.1), after=lambda v: {"state": new}),
        lambda new, x, y: js.minimize(optax.sgd(0.1), lambda v: (squares(x @ v["params"]["w"], y), {"state": new})),
    ):
        assert warnings(caplog, make(op), init_fn) == []


def test_constants_are_not_told_of(caplog):
    """Read, read for what only another mode uses, or not at all."""

    def init_fn():
        return {
            "params": {"w": jnp.zeros(3), "frozen": jnp.ones(3)},
            "constants": {"scale": jnp.float32(2), "shift": jnp.ones(3)},
            "lookup": {"table": jnp.arange(5.0)},
            "teacher": {"w": jnp.ones(3)},
        }

    def model_fn(variables, features, labels, mode):
        p, constants = variables["params"], variables["constants"]
        out = features @ (p["w"] * p["frozen"])
        scaled = out * constants["scale"]  # for evaluation alone
        metric = (scaled - labels).mean() + (features * constants["shift"]).sum()
        return js.TPUEstimatorSpec(
            mode,
            loss=squares(out, features @ variables["teacher"]["w"]),
            train_op=js.minimize(optax.sgd(0.1), of="w"),
            eval_metrics=(lambda m: {}, [metric]) if mode == js.ModeKeys.EVAL else None,
        )

    assert warnings(caplog, model_fn, init_fn) == []


def test_a_loss_that_nothing_trained_can_change(caplog):
    def init_fn():
        return {"params": {"w": jnp.zeros(3), "v": jnp.zeros(3)}}

    def make(loss_of, **kwargs):
        def model_fn(variables, features, labels, mode):
            loss = loss_of(variables["params"], features, labels)
            return js.TPUEstimatorSpec(mode, loss=loss, train_op=js.minimize(optax.sgd(0.1), **kwargs))

        return model_fn

    def good(p, x, y):
        return squares(x @ p["w"], y)

    def error_rate(p, x, y):
        return ((x @ p["w"] > 0) != (y > 0)).astype(jnp.float32).mean()

    for loss_of, kwargs in (
        (lambda p, x, y: squares(x.mean(1), y), {}),
        (error_rate, {}),
        (good, {"of": "v"}),
        (good, {"loss": lambda v: jnp.float32(3)}),
    ):
        (text,) = warnings(caplog, make(loss_of, **kwargs), init_fn)
        assert "The loss does not depend on what is trained" in text
        assert "module.apply(variables, features)" in text
    for loss_of, kwargs in (
        (good, {}),
        (lambda p, x, y: squares(jax.jit(jnp.dot)(x, p["w"]), y), {"of": "w"}),
        (lambda p, x, y: jax.lax.fori_loop(0, 2, lambda _, a: a + good(p, x, y), 0.0), {}),
        (error_rate, {"loss": lambda v: (v["params"]["w"] ** 2).sum()}),
    ):
        assert warnings(caplog, make(loss_of, **kwargs), init_fn) == []
