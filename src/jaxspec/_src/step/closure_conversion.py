"""Functions made inside model_fn, made callable after its trace has ended.

While model_fn is differentiated, its arrays exist only in the trace of that differentiation. A function that it returns
(an optimizer, a loss, an `after`) may have captured such arrays, at any depth. `convert_closure` traces the function
while they still exist, and turns them into leaves of a pytree, which JAX carries out of the trace as any other result.
"""

from typing import TypeAlias

import jax
import jax.extend
from jax.extend.core import ClosedJaxpr

from jaxspec._src.base.arrays import is_tracer
from jaxspec._src.base.types import AnyFunction, PyTree
from jaxspec._src.step.debugging import debugging

Converted: TypeAlias = jax.tree_util.Partial
"""A function as a pytree: its leaves are the arrays that it had captured."""


def convert_closure(fn: AnyFunction, *args: PyTree) -> Converted:
    """`fn` as a pytree of the traced arrays that it has captured.

    `jax.closure_convert` captures only those that are being differentiated. Under `jax.disable_jit()` nothing is traced,
    so that `fn` sees values, and nothing is captured.

    Args:
      args: arrays of the shapes and dtypes that `fn` will be called with.
    """
    if debugging():
        return Converted(fn)
    closed, out = jax.make_jaxpr(fn, return_shape=True)(*args)
    jaxpr, treedef = closed.jaxpr, jax.tree.structure(out)
    # `call` must not hold tracers itself.
    constants = [None if is_tracer(x) else x for x in closed.consts]
    is_captured = [is_tracer(x) for x in closed.consts]

    def call(captured: list[jax.Array], *args: PyTree) -> PyTree:
        values = iter(captured)
        consts = [next(values) if yes else x for x, yes in zip(constants, is_captured, strict=True)]
        flat = jax.extend.core.jaxpr_as_fun(ClosedJaxpr(jaxpr, consts))(*jax.tree.leaves(args))
        return jax.tree.unflatten(treedef, flat)

    return Converted(call, [x for x in closed.consts if is_tracer(x)])
