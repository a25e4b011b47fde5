"""The optimizers of ``tf.compat.v1.train`` as optax transformations.

Each function here takes the arguments of the TensorFlow class, with TensorFlow's names and defaults;
``learning_rate`` may be a number or a schedule (``tf_schedules``). Where optax has the same rule the function
is just the optax call that says it. Adam and FTRL are those of ``jaxspec.optim``; rare rules are written out here.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxspec as js


def make_optimizer(kind, learning_rate, **arguments):
    """The transformation of ``tf.compat.v1.train.<kind>Optimizer(learning_rate, **arguments)``."""
    return OPTIMIZERS[kind](learning_rate, **arguments)


def gradient_descent(learning_rate):
    """``GradientDescentOptimizer``."""
    return optax.sgd(learning_rate)


def momentum(learning_rate, momentum, use_nesterov=False):
    """``MomentumOptimizer``."""
    return optax.sgd(learning_rate, momentum=momentum, nesterov=use_nesterov)


def adagrad(learning_rate, initial_accumulator_value=0.1):
    """``AdagradOptimizer``, which has no epsilon."""
    return optax.adagrad(learning_rate, initial_accumulator_value=initial_accumulator_value, eps=0.0)


def rmsprop(learning_rate, decay=0.9, momentum=0.0, epsilon=1e-10, centered=False):
    """``RMSPropOptimizer``, whose mean square starts at 1."""
    return optax.rmsprop(
        learning_rate,
        decay=decay,
        eps=epsilon,
        eps_in_sqrt=True,
        initial_scale=1.0,
        centered=centered,
        momentum=momentum or None,
    )


def adadelta(learning_rate=0.001, rho=0.95, epsilon=1e-8):
    """``AdadeltaOptimizer``."""
    return optax.adadelta(learning_rate, rho=rho, eps=epsilon)


def adagrad_da(
    learning_rate,
    initial_gradient_squared_accumulator_value=0.1,
    l1_regularization_strength=0.0,
    l2_regularization_strength=0.0,
):
    """``AdagradDAOptimizer`` with the estimator's global step, counted from 1 as its updates are."""
    l1, l2 = l1_regularization_strength, l2_regularization_strength

    def rule(rate, count, gradient, weight, total, squares):
        total += gradient
        squares += gradient**2
        soft = _shrink(total, l1 * count)
        return -rate * soft / (l2 * count * rate + jnp.sqrt(squares)), total, squares

    return _by_weight(learning_rate, rule, 0.0, initial_gradient_squared_accumulator_value)


def proximal_gradient_descent(learning_rate, l1_regularization_strength=0.0, l2_regularization_strength=0.0):
    """``ProximalGradientDescentOptimizer``."""
    l1, l2 = l1_regularization_strength, l2_regularization_strength

    def rule(rate, count, gradient, weight):
        return (_shrink(weight - rate * gradient, rate * l1) / (1 + rate * l2),)

    return _by_weight(learning_rate, rule)


def proximal_adagrad(
    learning_rate,
    initial_accumulator_value=0.1,
    l1_regularization_strength=0.0,
    l2_regularization_strength=0.0,
):
    """``ProximalAdagradOptimizer``."""
    l1, l2 = l1_regularization_strength, l2_regularization_strength

    def rule(rate, count, gradient, weight, squares):
        squares += gradient**2
        rate *= jax.lax.rsqrt(squares)
        return _shrink(weight - rate * gradient, rate * l1) / (1 + rate * l2), squares

    return _by_weight(learning_rate, rule, initial_accumulator_value)


OPTIMIZERS = {
    "GradientDescent": gradient_descent,
    "Momentum": momentum,
    "Adam": js.optim.adam,
    "Adagrad": adagrad,
    "RMSProp": rmsprop,
    "Adadelta": adadelta,
    "Ftrl": js.optim.ftrl,
    "AdagradDA": adagrad_da,
    "ProximalGradientDescent": proximal_gradient_descent,
    "ProximalAdagrad": proximal_adagrad,
    "AdamWeightDecay": js.optim.adam_weight_decay,
}


class _State(NamedTuple):
    """``count`` updates so far, and for each slot a tree shaped like the weights."""

    count: jax.Array
    slots: tuple


def _by_weight(learning_rate, rule, *slot_starts):
    """The transformation that applies ``rule`` to each weight by itself.

    ``rule(rate, count, gradient, weight, *slots)`` returns the new weight and the new slots; ``count`` is the
    number of this update, from 1. ``slot_starts`` are the values that the slots start with.
    """

    def init(params):
        slots = (optax.tree.full_like(params, start) for start in slot_starts)
        return _State(jnp.int32(0), tuple(slots))

    def update(gradients, state, params):
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        gradient_leaves, structure = jax.tree.flatten(gradients)
        weights, *slots = (structure.flatten_up_to(tree) for tree in (params, *state.slots))
        count = state.count + 1
        new = [rule(rate, count, *leaves) for leaves in zip(gradient_leaves, weights, *slots, strict=True)]
        new_weights, *new_slots = (structure.unflatten(column) for column in zip(*new, strict=True))
        return jax.tree.map(jnp.subtract, new_weights, params), _State(count, tuple(new_slots))

    return optax.GradientTransformation(init, update)


def _shrink(value, amount):
    """``value`` moved towards zero by ``amount``, no further than zero."""
    return jnp.sign(value) * jnp.maximum(jnp.abs(value) - amount, 0.0)
