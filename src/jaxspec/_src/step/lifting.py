"""Functions made inside model_fn, made usable outside of the trace that model_fn ran in.

While model_fn is differentiated its arrays exist only in the trace of that differentiation. What it hands over as a
function (an optimizer, a loss, an `after`) may have captured such arrays, at any depth. `lift` traces the function while
they are still there, and tells which they are: JAX then carries them out of the trace like any other result.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.extend
from jax.extend.core import ClosedJaxpr, Jaxpr

from jaxspec._src.step.debugging import debugging

Lifted = Callable[..., Any]
"""A function without its captured arrays: `lifted(captured, *args)`."""


def lift(fn: Callable[..., Any], *args: Any) -> tuple[Lifted, list[Any]]:
    """(`fn` as a function of its captured arrays and its arguments; the captured arrays).

    Under `jax.disable_jit()` nothing is traced, and nothing is lifted: `fn` is to see values.

    Args:
      args: arrays of the shapes and dtypes that `fn` will be called with.
    """
    if debugging():
        return lambda captured, *args: fn(*args), []
    closed, out = jax.make_jaxpr(fn, return_shape=True)(*args)
    jaxpr, treedef = closed.jaxpr, jax.tree.structure(out)
    is_captured = [isinstance(x, jax.core.Tracer) for x in closed.consts]
    constants = [None if yes else x for x, yes in zip(closed.consts, is_captured, strict=True)]

    def call(captured: list[Any], *args: Any) -> Any:
        values = iter(captured)
        consts = [next(values) if yes else x for x, yes in zip(constants, is_captured, strict=True)]
        flat = jax.extend.core.jaxpr_as_fun(ClosedJaxpr(jaxpr, consts))(*jax.tree.leaves(args))
        return jax.tree.unflatten(treedef, flat)

    return call, [x for x, yes in zip(closed.consts, is_captured, strict=True) if yes]


def silent(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` without its callbacks (`jax.debug.print` and the like): for one evaluation more of what has run already."""
    if debugging():
        return fn

    def call(*args: Any) -> Any:
        closed, out = jax.make_jaxpr(fn, return_shape=True)(*args)
        jaxpr = needed_part(closed.jaxpr)
        flat = jax.extend.core.jaxpr_as_fun(ClosedJaxpr(jaxpr, closed.consts))(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(out), flat)

    return call


def needed_part(jaxpr: Jaxpr, outputs: int | None = None) -> Jaxpr:
    """What the first `outputs` (None: all) outputs are computed from. Effects, such as callbacks, are not kept for their own sake."""
    outvars = jaxpr.outvars[:outputs]
    needed = {id(v) for v in outvars}
    kept: list[Any] = []
    for equation in reversed(jaxpr.eqns):
        if not any(id(v) in needed for v in equation.outvars):
            continue
        needed.update(id(v) for v in equation.invars)
        kept.append(_without_callbacks(equation))
    kept.reverse()
    return _replaced(jaxpr, kept, outvars)


def _replaced(jaxpr: Jaxpr, eqns: list[Any], outvars: Any) -> Jaxpr:
    dropped = [e for e in jaxpr.effects if not any(e in equation.effects for equation in eqns)]
    info = jaxpr.debug_info
    if len(outvars) != len(jaxpr.outvars):
        info = info._replace(result_paths=None)
    replaced: Jaxpr = jaxpr.replace(
        eqns=eqns, outvars=list(outvars), effects=jaxpr.effects - set(dropped), debug_info=info
    )
    return replaced


def _without_callbacks(equation: Any) -> Any:
    if not equation.effects:
        return equation

    def clean(value: Any) -> Any:
        if isinstance(value, ClosedJaxpr):
            return value.replace(jaxpr=needed_part(value.jaxpr))
        if isinstance(value, Jaxpr):
            return needed_part(value)
        if isinstance(value, tuple | list):
            return type(value)(map(clean, value)) if not hasattr(value, "_fields") else value
        return value

    params = {name: clean(value) for name, value in equation.params.items()}
    inner = [set(j.effects) for j in jax.extend.core.jaxprs_in_params(params)]
    if not inner:
        return equation
    return equation.replace(params=params, effects=equation.effects & set().union(*inner))
