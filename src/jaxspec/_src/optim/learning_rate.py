"""A learning rate: a number, or a function of the number of updates so far."""

from collections.abc import Callable
from typing import TypeAlias

import jax

LearningRate: TypeAlias = float | jax.Array | Callable[[jax.Array], jax.Array | float]
"""A number, or an optax schedule: a function of the number of updates so far, from 0."""


def rate_at(learning_rate: LearningRate, count: jax.Array) -> jax.Array | float:
    """The learning rate after `count` updates."""
    return learning_rate(count) if callable(learning_rate) else learning_rate
