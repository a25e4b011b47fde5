"""Functions as jaxprs: called after their trace, or without callbacks and parts that are not needed."""

import hashlib
import re
from collections.abc import Callable
from typing import ParamSpec, TypeAlias

import jax
import jax.extend
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from jaxspec._src.base.arrays import is_tracer
from jaxspec._src.base.types import AnyFunction, PyTree, T

P = ParamSpec("P")
Converted: TypeAlias = jax.tree_util.Partial
"""A function as a pytree: its leaves are the arrays that it had captured."""


def debugging() -> bool:
    """Whether `jax.disable_jit()` is in force, under which model_fn sees values.

    What is being differentiated is a tracer even then. It shows its value when it is printed;
    `jax.lax.stop_gradient(x)` is the value itself.
    """
    return bool(getattr(jax.config, "jax_disable_jit", False))  # JAX does not declare its type


def fingerprint(jaxpr: Jaxpr | None) -> str:
    """A hash of what a jaxpr computes, the same in every process that traces the same function; None has one, too."""
    without_addresses = re.sub(r"0x[0-9a-f]+", "", str(jaxpr))
    return hashlib.sha256(without_addresses.encode()).hexdigest()[:16]


def convert_closure(fn: AnyFunction, *args: PyTree) -> Converted:
    """`fn` as a pytree of the traced arrays that it has captured.

    While model_fn is differentiated, its arrays exist only in the trace of that differentiation. A function that it
    returns (an optimizer, a loss, an `after`) may have captured such arrays, at any depth. This traces the function
    while they still exist, and turns them into leaves of a pytree, which JAX carries out of the trace as any other
    result.

    `jax.closure_convert` captures only those that are being differentiated. Under `jax.disable_jit()` nothing is
    traced, so that `fn` sees values, and nothing is captured.

    Args:
      args: arrays of the shapes and dtypes that `fn` will be called with.
    """
    if debugging():
        return Converted(fn)
    closed, out = jax.make_jaxpr(fn, return_shape=True)(*args)
    jaxpr, treedef = closed.jaxpr, jax.tree.structure(out)
    # `call` must not hold tracers itself.
    constants = [None if is_tracer(x) else x for x in closed.consts]

    def call(captured: list[jax.Array], *args: PyTree) -> PyTree:
        values = iter(captured)
        consts = [next(values) if x is None else x for x in constants]
        flat = jax.extend.core.jaxpr_as_fun(ClosedJaxpr(jaxpr, consts))(*jax.tree.leaves(args))
        return jax.tree.unflatten(treedef, flat)

    return Converted(call, [x for x in closed.consts if is_tracer(x)])


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
    """The equations that the first `outputs` outputs (None: all) are computed from. Effects such as callbacks do not
    count."""
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
