"""init_fn -> variables."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .arrays import describe_array
from .axis import bind_shard_axis
from .callables import call_by_name, check_arguments, describe

INIT_FN_ARGUMENTS = ("rng", "features", "labels", "params")


def as_init_fn(init_fn: Any) -> Callable[..., Any]:
    """`init_fn` as a function of the keywords rng, features, labels, params that returns the variables.

    Args:
      init_fn: a function that names any of these, or a `flax.linen.Module`, which then means
        `module.init({"params": k1, "dropout": k2}, features)`.
    """
    if _is_linen_module(init_fn):
        return _module_init(init_fn)
    check_arguments(init_fn, role="init_fn", allowed=INIT_FN_ARGUMENTS)

    def init(**available: Any) -> dict[str, Any]:
        return _check_variables(call_by_name(init_fn, available), describe(init_fn))

    return init


def _is_linen_module(value: Any) -> bool:
    import flax.linen

    return isinstance(value, flax.linen.Module)


def _module_init(module: Any) -> Callable[..., Any]:
    def init(*, rng: Any, features: Any, labels: Any, params: Any) -> dict[str, Any]:
        k1, k2 = jax.random.split(rng)
        name = type(module).__name__
        try:
            variables = module.init({"params": k1, "dropout": k2}, features)
        except TypeError as error:
            if "required positional argument" not in str(error) and "__call__()" not in str(error):
                raise
            raise TypeError(
                f"init_fn={name}(...) is initialised as module.init(rngs, features), but its __call__ takes other "
                f"arguments: {error}. Write an init_fn that passes them, for example: "
                f'init_fn=lambda rng, features: {name}(...).init(rng, features["a"], features["b"])'
            ) from error
        return _check_variables(variables, name)

    return init


def _check_variables(variables: Any, source: str) -> dict[str, Any]:
    from flax.core import unfreeze

    if isinstance(variables, Mapping):
        variables = unfreeze(dict(variables))
    if not isinstance(variables, Mapping) or "params" not in variables:
        got = f"a dict with the keys {sorted(variables)}" if isinstance(variables, Mapping) else repr(type(variables))
        raise ValueError(
            f"init_fn ({source}) must return a dict of collections with 'params' among them, got {got}. "
            'Write return {"params": ...}: what is in "params" is trained, other collections are not.'
        )
    return dict(variables)


def init_on_one_shard(init_fn: Any, params_for: Callable[[Any], Mapping[str, Any]]) -> Callable[..., Any]:
    """A pure function `(rng, features, labels) -> variables` of one per-shard batch, with `SHARD_AXIS` bound.

    Args:
      init_fn: what `as_init_fn` takes.
      params_for: makes the `params` of init_fn from the features.
    """
    make = as_init_fn(init_fn)

    def init(rng: Any, features: Any, labels: Any) -> Any:
        return strong_arrays(make(rng=rng, features=features, labels=labels, params=dict(params_for(features))))

    return bind_shard_axis(init)


def strong_arrays(tree: Any) -> Any:
    """The leaves as JAX arrays of a fixed dtype; a Python number would change type in the first update."""

    def one(path: Any, leaf: Any) -> Any:
        try:
            array = jnp.asarray(leaf)
        except TypeError:
            raise TypeError(
                f"variables{jax.tree_util.keystr(path)} is no array: {describe_array(leaf)}. Variables hold arrays only."
            ) from None
        return jax.lax.convert_element_type(array, array.dtype)

    return jax.tree_util.tree_map_with_path(one, tree)
