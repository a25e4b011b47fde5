"""The arguments of TensorFlow's optimizers and schedules, of which the recorded training runs use few.

``record_rules.py`` recorded what is expected here.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracle_read import load, load_arrays
from tf_optimizers import make_optimizer
from tf_schedules import exponential_decay, make_schedule
from trajectories import DATA

RULES, ARRAYS = load(DATA / "rules.json"), load_arrays(DATA / "rules.npz")


def numbered(cases):
    """The cases as test parameters, each with its number."""
    return [pytest.param(number, *case, id=f"{case[0]}-{number}") for number, case in enumerate(cases)]


@pytest.mark.parametrize(("number", "kind", "arguments"), numbered(RULES["schedules"]))
def test_schedule(number, kind, arguments):
    expected = ARRAYS["rates"][number]
    schedule = make_schedule(RULES["learning_rate"], kind, **arguments)
    rates = jax.jit(jax.vmap(schedule))(jnp.arange(len(expected)))
    np.testing.assert_allclose(rates, expected, rtol=1e-5, atol=1e-8)


@pytest.fixture(scope="module")
def runs():
    """(losses, final weights) of every optimizer; all in one program, which compiles faster than many."""
    optimizers = []
    for kind, arguments, decays in RULES["optimizers"]:
        rate = RULES["learning_rate"]
        rate = exponential_decay(rate, **RULES["decaying"]) if decays else rate
        optimizers.append(make_optimizer(kind, rate, **arguments))

    def loss(params, x, y):
        return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)

    def step(states, batch):
        new = [one_step(*pair, batch) for pair in zip(optimizers, states, strict=True)]
        return [state for state, _ in new], [value for _, value in new]

    def one_step(optimizer, state, batch):
        params, slots = state
        value, gradients = jax.value_and_grad(loss)(params, *batch)
        updates, slots = optimizer.update(gradients, slots, params)
        return (optax.apply_updates(params, updates), slots), value

    @jax.jit
    def run(params, batches):
        return jax.lax.scan(step, [(params, optimizer.init(params)) for optimizer in optimizers], batches)

    states, losses = run({key: ARRAYS[key] for key in ("w", "b")}, (ARRAYS["x"], ARRAYS["y"]))
    weights = [np.concatenate([params["w"].ravel(), params["b"]]) for params, _ in states]
    return losses, weights


@pytest.mark.parametrize(("number", "kind", "arguments", "decays"), numbered(RULES["optimizers"]))
def test_optimizer(runs, number, kind, arguments, decays):
    losses, weights = (of_all[number] for of_all in runs)
    np.testing.assert_allclose(losses[:3], ARRAYS["losses"][number][:3], rtol=1e-5)
    np.testing.assert_allclose(losses, ARRAYS["losses"][number], rtol=1e-4)
    np.testing.assert_allclose(weights, ARRAYS["weights"][number], rtol=2e-3, atol=1e-5)
