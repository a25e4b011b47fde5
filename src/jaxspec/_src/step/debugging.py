"""`jax.disable_jit()`, under which model_fn sees values.

What is being differentiated is a tracer even then. It shows its value when it is printed; `jax.lax.stop_gradient(x)` is
the value itself.
"""

import jax


def debugging() -> bool:
    """Whether `jax.disable_jit()` is in force."""
    return bool(getattr(jax.config, "jax_disable_jit", False))  # JAX does not declare its type
