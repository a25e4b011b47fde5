"""An alternating GAN: several TrainOps with their own losses and optimizers in one step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_models import run_config

import jaxspec as js

REAL = np.random.default_rng(0).normal(2.0, 0.5, (96, 2)).astype(np.float32)


def init_fn(rng):
    keys = jax.random.split(rng, 4)
    dense = lambda key, a, b: 0.5 * jax.random.normal(key, (a, b))  # noqa: E731
    return {
        "params": {
            "generator": {"w0": dense(keys[0], 3, 8), "w1": dense(keys[1], 8, 2)},
            "discriminator": {"w0": dense(keys[2], 2, 8), "w1": dense(keys[3], 8, 1)},
        }
    }


def mlp(p, x):
    return jnp.tanh(x @ p["w0"]) @ p["w1"]


def noise(features, round_):
    """Deterministic, a function of each row alone, so that it does not depend on the shards."""
    return jnp.stack([jnp.sin((3 + round_ + k) * features.sum(-1)) for k in range(3)], -1)


def discriminator_loss(params, features, round_):
    fake = mlp(params["generator"], noise(features, round_))
    real_logits, fake_logits = (mlp(params["discriminator"], x) for x in (features, fake))
    return jnp.mean(jax.nn.softplus(-real_logits)) + jnp.mean(jax.nn.softplus(fake_logits))


def generator_loss(params, features):
    return jnp.mean(jax.nn.softplus(-mlp(params["discriminator"], mlp(params["generator"], noise(features, 7)))))


def model_fn(variables, features, mode):
    loss = generator_loss(variables["params"], features)
    return js.TPUEstimatorSpec(
        mode,
        loss=loss,
        train_op=[
            *(
                js.minimize(
                    optax.adam(2e-2),
                    lambda v, i=i: discriminator_loss(v["params"], features, i),
                    of="discriminator",
                )
                for i in range(2)
            ),
            js.minimize(optax.adam(1e-2), lambda v: generator_loss(v["params"], features), of="generator"),
        ],
        host_call=(lambda loss: None, [loss]),
    )


def hand_written(params, batches):
    """Two discriminator updates, then one of the generator at the updated discriminator; whole batches."""
    discriminators, generator = (optax.adam(2e-2), optax.adam(2e-2)), optax.adam(1e-2)
    d_states = [d.init(params["discriminator"]) for d in discriminators]
    g_state = generator.init(params["generator"])

    @jax.jit
    def step(params, d_states, g_state, features):
        d_states = list(d_states)
        for i, d in enumerate(discriminators):
            grads = jax.grad(discriminator_loss)(params, features, i)["discriminator"]
            updates, d_states[i] = d.update(grads, d_states[i], params["discriminator"])
            params = {**params, "discriminator": optax.apply_updates(params["discriminator"], updates)}
        grads = jax.grad(generator_loss)(params, features)["generator"]
        updates, g_state = generator.update(grads, g_state, params["generator"])
        return {**params, "generator": optax.apply_updates(params["generator"], updates)}, d_states, g_state

    for features in batches:
        params, d_states, g_state = step(params, d_states, g_state, features)
    return params


@pytest.mark.parametrize("shards", [1, 4])
def test_an_alternating_gan_equals_a_hand_written_loop(tmp_path, shards):
    """Slow: two networks and their gradients, compiled here and in the loop that is written by hand."""
    batches = [REAL[i % 96 : i % 96 + 16] for i in range(0, 320, 16)]
    estimator = js.TPUEstimator(
        model_fn,
        init_fn,
        model_dir=tmp_path,
        train_batch_size=16,
        config=run_config(save=1000, every=6, num_shards=shards),
    )
    init_rng, _ = jax.random.split(jax.random.key(0))
    expected = hand_written(init_fn(init_rng)["params"], batches)
    estimator.train(lambda: batches, steps=20)
    assert estimator.get_variable_value("global_step") == 20
    for part in ("generator", "discriminator"):
        for name in ("w0", "w1"):
            got = estimator.get_variable_value(f"params/{part}/{name}")
            np.testing.assert_allclose(got, expected[part][name], rtol=1e-5, atol=1e-6)
