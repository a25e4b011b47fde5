"""`jax.disable_jit()`: model_fn sees values."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np


def debugging() -> bool:
    """Whether `jax.disable_jit()` is in force."""
    config: Any = jax.config
    return bool(config.jax_disable_jit)


@contextlib.contextmanager
def values_of_tracers() -> Iterator[None]:
    """Within it `float(x)` and `np.asarray(x)` work on an array that is being differentiated, outside of jit.

    JAX allows `bool(x)` and `int(x)` there, and would know these as well.
    """
    tracer: Any = jax.core.Tracer
    before = {name: getattr(tracer, name) for name in ("__float__", "__array__")}

    def value(x: Any) -> Any:
        while isinstance(x, tracer) and getattr(x, "primal", None) is not None:
            x = x.primal
        return x

    def to_float(x: Any) -> float:
        known = value(x)
        return float(before["__float__"](x) if isinstance(known, tracer) else known)

    def to_array(x: Any, *args: Any, **kwargs: Any) -> Any:
        known = value(x)
        return (
            before["__array__"](x, *args, **kwargs) if isinstance(known, tracer) else np.asarray(known, *args, **kwargs)
        )

    tracer.__float__, tracer.__array__ = to_float, to_array
    try:
        yield
    finally:
        tracer.__float__, tracer.__array__ = before["__float__"], before["__array__"]
