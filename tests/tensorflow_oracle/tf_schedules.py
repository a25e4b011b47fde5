"""The learning rate schedules of ``tf.compat.v1.train`` as optax schedules.

Each function here bears TensorFlow's name, arguments and defaults, except that the global step is left out:
what comes back is a function of the step (0 for the first update), for use as ``learning_rate`` of an optax
optimizer.
"""

import math

import jax.numpy as jnp
import numpy as np


def make_schedule(learning_rate, kind="constant", **arguments):
    """The schedule that ``tf.compat.v1.train`` calls ``kind``, from its arguments; "constant" is none."""
    if kind == "constant":
        return lambda step: jnp.float32(learning_rate)
    if kind == "piecewise_constant":  # has its rates in ``values``
        return piecewise_constant(**arguments)
    return SCHEDULES[kind](learning_rate, **arguments)


def piecewise_constant(boundaries, values):
    """``values[i]`` up to and including step ``boundaries[i]`` (optax changes the rate one step earlier)."""

    def schedule(step):
        return jnp.asarray(values, jnp.float32)[(step > jnp.asarray(boundaries)).sum()]

    return schedule


def exponential_decay(learning_rate, decay_steps, decay_rate, staircase=False):
    """``learning_rate * decay_rate ** (step / decay_steps)``."""
    return lambda step: learning_rate * jnp.float32(decay_rate) ** _periods(step, decay_steps, staircase)


def natural_exp_decay(learning_rate, decay_steps, decay_rate, staircase=False):
    """``learning_rate * exp(-decay_rate * step / decay_steps)``."""
    return lambda step: learning_rate * jnp.exp(-decay_rate * _periods(step, decay_steps, staircase))


def inverse_time_decay(learning_rate, decay_steps, decay_rate, staircase=False):
    """``learning_rate / (1 + decay_rate * step / decay_steps)``."""
    return lambda step: learning_rate / (1 + decay_rate * _periods(step, decay_steps, staircase))


def polynomial_decay(learning_rate, decay_steps, end_learning_rate=0.0001, power=1.0, cycle=False):
    """Falls to ``end_learning_rate`` by ``decay_steps``; with ``cycle`` again and again, ever more slowly."""

    def schedule(step):
        length = decay_steps
        if cycle:
            length = decay_steps * jnp.maximum(1, -whole_periods(-step, decay_steps))  # the period rounded up
        else:
            step = jnp.minimum(step, decay_steps)
        rest = (length - step) / length  # 1 - step / length may come out below 0, where a root is NaN
        return (learning_rate - end_learning_rate) * rest**power + end_learning_rate

    return schedule


def cosine_decay(learning_rate, decay_steps, alpha=0.0):
    """Half a cosine wave from ``learning_rate`` down to ``alpha * learning_rate``."""

    def schedule(step):
        wave = _half_wave(jnp.minimum(step, decay_steps) / decay_steps)
        return learning_rate * ((1 - alpha) * wave + alpha)

    return schedule


def cosine_decay_restarts(learning_rate, first_decay_steps, t_mul=2.0, m_mul=1.0, alpha=0.0):
    """Half cosine waves, each ``t_mul`` times as long and ``m_mul`` times as high as the one before."""
    restart_steps, begins = _geometric_restarts(first_decay_steps, t_mul) if t_mul != 1 else ([], [])

    def schedule(step):
        if t_mul == 1:
            restarts = whole_periods(step, first_decay_steps)
            begin, length = restarts * first_decay_steps, first_decay_steps
        else:
            restarts = (step >= jnp.asarray(restart_steps, jnp.int32)).sum()
            begin = jnp.asarray(begins, jnp.float32)[restarts]
            length = first_decay_steps * jnp.float32(t_mul) ** restarts
        wave = jnp.float32(m_mul) ** restarts * _half_wave((step - begin) / length)
        return learning_rate * ((1 - alpha) * wave + alpha)

    return schedule


def linear_cosine_decay(learning_rate, decay_steps, num_periods=0.5, alpha=0.0, beta=0.001):
    """``num_periods`` cosine waves under a line that falls to ``alpha``, then lifted by ``beta``."""

    def schedule(step):
        done = jnp.minimum(step, decay_steps) / decay_steps
        return learning_rate * ((alpha + 1 - done) * _half_wave(2 * num_periods * done) + beta)

    return schedule


SCHEDULES = {
    "exponential_decay": exponential_decay,
    "natural_exp_decay": natural_exp_decay,
    "inverse_time_decay": inverse_time_decay,
    "polynomial_decay": polynomial_decay,
    "cosine_decay": cosine_decay,
    "cosine_decay_restarts": cosine_decay_restarts,
    "linear_cosine_decay": linear_cosine_decay,
}


def whole_periods(step, length):
    """``floor(step / length)`` in whole numbers: compilers make the division a product that is off by one."""
    if float(length).is_integer():
        return step // int(length)
    return jnp.floor(step / length)


def _periods(step, length, staircase):
    return whole_periods(step, length) if staircase else step / length


def _half_wave(fraction):
    return (1 + jnp.cos(math.pi * fraction)) / 2


def _geometric_restarts(first_length, growth, end=1e6):
    """The steps at which TensorFlow restarts, and where the periods, each ``growth`` times the last, begin.

    TensorFlow finds the number of restarts by a logarithm in float32. Where a period begins exactly at a
    step, rounding may make it restart one step late.
    """
    restart_steps, begins, length = [], [0.0], float(first_length)
    while begins[-1] + length < end and length > 1e-3:
        begins.append(begins[-1] + length)
        length *= growth
        step = math.ceil(begins[-1] - 1e-4)
        grown = 1 - np.float32(step) / np.float32(first_length) * (1 - np.float32(growth))
        late = np.floor(_log_32(grown) / _log_32(np.float32(growth))) < len(begins) - 1
        restart_steps.append(step + int(late))
    return restart_steps, begins


def _log_32(number):
    return np.float32(math.log(number))
