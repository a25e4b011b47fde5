"""The optimizers of jaxspec.optim as optax transformations. What they compute is held to TensorFlow's recordings in
tests/tensorflow_oracle."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxspec import optim

PARAMS = {"dense": {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([3.0])}, "scale": jnp.array(0.5)}
GRADIENTS = jax.tree.map(lambda x: 0.1 * x, PARAMS)
OPTIMIZERS = {
    "adam": optim.adam,
    "adam_weight_decay": optim.adam_weight_decay,
    "ftrl": optim.ftrl,
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_dtypes_and_structure_stay_as_they_are(make, dtype):
    optimizer = make(lambda count: 0.1 / (1 + count))
    params, gradients = (jax.tree.map(lambda x: x.astype(dtype), tree) for tree in (PARAMS, GRADIENTS))
    state = optimizer.init(params)
    updates, after = jax.jit(optimizer.update)(gradients, state, params)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    for one, other in ((state, after), (params, updates)):
        assert [x.dtype for x in jax.tree.leaves(one)] == [x.dtype for x in jax.tree.leaves(other)]
        assert [x.shape for x in jax.tree.leaves(one)] == [x.shape for x in jax.tree.leaves(other)]


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_it_converges(make):
    def loss(params):
        return sum(jnp.sum((x - 1) ** 2) for x in jax.tree.leaves(params))

    optimizer = make(0.1)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (PARAMS, optimizer.init(PARAMS)), length=500)
    assert loss(params) < 0.1


@pytest.mark.parametrize("make", [optim.adam, optim.adam_weight_decay])
def test_a_schedule_sees_the_number_of_updates_so_far(make):
    updates = []
    for optimizer in (make(0.2), make(lambda count: 0.1 * (count + 1))):
        _, state = optimizer.update(GRADIENTS, optimizer.init(PARAMS), PARAMS)
        updates.append(optimizer.update(GRADIENTS, state, PARAMS)[0])
    jax.tree.map(np.testing.assert_allclose, *updates)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_arguments_may_be_arrays_of_a_program(make):
    updates = []
    for optimizer in (make(0.1), optax.inject_hyperparams(make)(learning_rate=0.1)):
        state = optimizer.init(PARAMS)
        updates.append(jax.jit(optimizer.update)(GRADIENTS, state, PARAMS)[0])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), *updates)


def test_weights_decay_unless_their_path_matches():
    optimizer = optim.adam_weight_decay(0.1, weight_decay_rate=0.5, exclude_from_weight_decay=["bias", "^scale"])
    none = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = optimizer.update(none, optimizer.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["dense"]["kernel"], -0.1 * 0.5 * PARAMS["dense"]["kernel"])
    assert updates["dense"]["bias"] == updates["scale"] == 0


def test_one_pattern_may_be_a_string():
    optimizer = optim.adam_weight_decay(0.1, weight_decay_rate=0.5, exclude_from_weight_decay="bias")
    none = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = optimizer.update(none, optimizer.init(PARAMS), PARAMS)
    assert updates["dense"]["bias"] == 0
    assert updates["scale"] != 0


def test_the_first_update_of_adam_adds_epsilon_to_the_uncorrected_root():
    optimizer = optim.adam(1.0, beta1=0.9, beta2=0.99, epsilon=0.5)
    updates, _ = optimizer.update({"w": jnp.array(2.0)}, optimizer.init({"w": jnp.array(0.0)}))
    root = np.sqrt(0.01 * 4)
    np.testing.assert_allclose(updates["w"], -np.sqrt(0.01) / 0.1 * 0.2 / (root + 0.5), rtol=1e-6)


@pytest.mark.parametrize("name", ["adam_weight_decay", "ftrl"])
def test_the_parameters_are_needed(name):
    optimizer = OPTIMIZERS[name](0.1)
    with pytest.raises(ValueError, match=rf"{name}: write update\(gradients, state, params\): it needs the parameters"):
        optimizer.update(GRADIENTS, optimizer.init(PARAMS))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate_power": 0.5}, "ftrl: -learning_rate_power must be 0 or more, got -0.5"),
        ({"initial_accumulator_value": -1.0}, "ftrl: initial_accumulator_value must be 0 or more, got -1.0"),
        ({"l1_regularization_strength": -0.1}, "ftrl: l1_regularization_strength must be 0 or more, got -0.1"),
        ({"l2_regularization_strength": -0.1}, "ftrl: l2_regularization_strength must be"),
        ({"l2_shrinkage_regularization_strength": -0.1}, "ftrl: l2_shrinkage_regularization_strength must be"),
        ({"beta": float("nan")}, "ftrl: beta must be 0 or more, got nan"),
    ],
)
def test_arguments_that_tensorflow_refuses_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        optim.ftrl(0.1, **arguments)
