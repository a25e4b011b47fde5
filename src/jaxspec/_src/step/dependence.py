"""What each value of a traced function is computed from."""

from collections.abc import Collection
from typing import Any, TypeAlias

import jax
import jax.extend
import jax.numpy as jnp
from jax.extend.core import Jaxpr, Literal, Var

Value: TypeAlias = int
"""The number of a value."""


class Dependence:
    """The values of a jaxpr and of the jitted functions that it calls, numbered, and what each is computed from.

    Each output of any other equation that contains a program (a loop, a custom derivative) counts as dependent on all
    of its inputs. So "does not depend" is always right, and "depends" nearly always.
    """

    def __init__(self, jaxpr: Jaxpr) -> None:
        self._equations: list[tuple[list[Value], list[tuple[Value, Any]]]] = []
        self._count = 0
        self.inputs = [self._new() for _ in jaxpr.invars]
        self.outputs = self._add(jaxpr, self.inputs)

    def _new(self) -> Value:
        self._count += 1
        return self._count

    def _add(self, jaxpr: Jaxpr, inputs: list[Value]) -> list[Value]:
        values = dict(zip(map(id, jaxpr.invars), inputs, strict=True))

        def value(var: Var | Literal) -> Value:
            return values.setdefault(id(var), self._new())  # constants and literals: numbers of their own

        for equation in jaxpr.eqns:
            ins = [value(v) for v in equation.invars]
            inner = list(jax.extend.core.jaxprs_in_params(equation.params))
            if equation.primitive.name in ("jit", "pjit", "closed_call") and len(inner) == 1:
                outs = self._add(inner[0], ins)
                # New numbers: an output may be unused although the value inside is used.
                for var, inside in zip(equation.outvars, outs, strict=True):
                    values[id(var)] = self._new()
                    self._equations.append(([inside], [(values[id(var)], var.aval)]))
            else:
                outputs = [(self._new(), var.aval) for var in equation.outvars]
                values.update((id(var), number) for var, (number, _) in zip(equation.outvars, outputs, strict=True))
                self._equations.append((ins, outputs))
        return [value(v) for v in jaxpr.outvars]

    def have_gradient(self, sources: Collection[Value]) -> set[Value]:
        """The values with a gradient: they depend on one of the `sources` through floating or complex values only."""
        found = set(sources)
        for ins, outs in self._equations:
            if not found.isdisjoint(ins):
                found.update(number for number, aval in outs if jnp.issubdtype(aval.dtype, jnp.inexact))
        return found

    def reaches_an_output(self, source: Value) -> bool:
        """Whether an output depends on a value."""
        found = {source}
        for ins, outs in self._equations:
            if not found.isdisjoint(ins):
                found.update(number for number, _ in outs)
        return not found.isdisjoint(self.outputs)

    def has_unused_new_value(self, source: Value, aval: jax.ShapeDtypeStruct | jax.Array) -> bool:
        """Whether a value that nothing uses is computed from `source`, through values of its shape and dtype.

        A new value of a variable that no TrainOp writes looks so: `0.9 * old + 0.1 * batch`, `old + 1`.
        """
        found, used = {source}, set(self.outputs)
        for ins, outs in self._equations:
            used.update(ins)
            if not found.isdisjoint(ins):
                found.update(number for number, out in outs if (out.shape, out.dtype) == (aval.shape, aval.dtype))
        return bool(found - used - {source})
