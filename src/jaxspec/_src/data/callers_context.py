"""A thread that sees what its starter sees."""

import contextvars
import functools
from collections.abc import Callable
from typing import Any

import jax


def in_callers_context(run: Callable[[], None]) -> Callable[[], None]:
    """`run`, to be called in another thread, with a copy of the caller's context.

    Also with those settings of JAX that decide about arrays on the host: they belong to a thread, not to a context.
    """
    config: Any = jax.config
    x64, device = config.jax_enable_x64, config.jax_default_device

    def with_settings() -> None:
        with jax.enable_x64(x64), jax.default_device(device):
            run()

    return functools.partial(contextvars.copy_context().run, with_settings)
