"""Wraps a function for another thread, so that it sees the context variables and JAX settings of the caller."""

import contextvars
import functools
from collections.abc import Callable
from typing import Any

import jax


def in_callers_context(run: Callable[[], None]) -> Callable[[], None]:
    """`run` for another thread, with a copy of the caller's context.

    It also sees the caller's `jax_enable_x64` and `jax_default_device`, which belong to a thread, not to a context.
    """
    config: Any = jax.config
    x64, device = config.jax_enable_x64, config.jax_default_device

    def with_settings() -> None:
        with jax.enable_x64(x64), jax.default_device(device):
            run()

    return functools.partial(contextvars.copy_context().run, with_settings)
