"""A traced function without the parts that its results do not need, callbacks among them."""

from collections.abc import Callable
from typing import ParamSpec

import jax
import jax.extend
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from jaxspec._src.base.types import T
from jaxspec._src.step.debugging import debugging

P = ParamSpec("P")


def without_callbacks(fn: Callable[P, T]) -> Callable[P, T]:
    """`fn` without `jax.debug.print` and other callbacks: for evaluating again what has run already in the same step.

    Under `jax.disable_jit()` nothing is traced, and this is `fn` itself.
    """
    if debugging():
        return fn

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        closed, out = jax.make_jaxpr(fn, return_shape=True)(*args, **kwargs)
        flat = jax.extend.core.jaxpr_as_fun(ClosedJaxpr(needed_part(closed.jaxpr), closed.consts))
        result: T = jax.tree.unflatten(jax.tree.structure(out), flat(*jax.tree.leaves((args, kwargs))))
        return result

    return call


def needed_part(jaxpr: Jaxpr, outputs: int | None = None) -> Jaxpr:
    """The equations that the first `outputs` outputs (None: all) are computed from. Effects such as callbacks do not count."""
    outvars = list(jaxpr.outvars[:outputs])
    needed = {id(v) for v in outvars}
    kept: list[JaxprEqn] = []
    for equation in reversed(jaxpr.eqns):
        if any(id(v) in needed for v in equation.outvars):
            needed.update(id(v) for v in equation.invars)
            kept.append(_without_effects(equation))
    info = jaxpr.debug_info
    if len(outvars) != len(jaxpr.outvars):
        info = info._replace(result_paths=None)
    effects = jaxpr.effects & set().union(*(equation.effects for equation in kept))
    pruned: Jaxpr = jaxpr.replace(eqns=kept[::-1], outvars=outvars, effects=effects, debug_info=info)
    return pruned


def _without_effects(equation: JaxprEqn) -> JaxprEqn:
    """The equation, with the programs that it holds (the body of a loop, a jitted function) pruned."""
    if not equation.effects:
        return equation

    def pruned(value: object) -> object:
        if isinstance(value, ClosedJaxpr):
            return value.replace(jaxpr=needed_part(value.jaxpr))
        if isinstance(value, Jaxpr):
            return needed_part(value)
        if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
            return type(value)(map(pruned, value))
        return value

    params = {name: pruned(value) for name, value in equation.params.items()}
    inner = [set(jaxpr.effects) for jaxpr in jax.extend.core.jaxprs_in_params(params)]
    return equation.replace(params=params, effects=equation.effects & set().union(*inner)) if inner else equation
