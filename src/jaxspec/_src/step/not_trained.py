"""Warns of variables that get no gradient and no update, though model_fn seems to train them."""

import logging
from collections.abc import Collection, Sequence
from typing import Any, TypeAlias

import jax
import jax.extend
import jax.numpy as jnp
from jax.extend.core import Jaxpr, Literal, Var

from jaxspec._src.base.arrays import named_leaves
from jaxspec._src.base.types import PyTree, Variables
from jaxspec._src.step.moving_average import COLLECTION

_logger = logging.getLogger("jaxspec")
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


def warn_of_losses_without_gradient(
    values: Dependence, losses: Sequence[Value | None], targets: Sequence[Sequence[Value]], *, takes_variables: bool
) -> None:
    """Warns of each loss whose gradient is zero: it depends on nothing that its TrainOp trains, or only through
    integers.

    Args:
      values: those of the traced model_fn.
      losses: the loss of each TrainOp; None where gradients are given.
      targets: for each TrainOp the leaves that it trains.
      takes_variables: whether model_fn names `variables`.
    """
    for number, (loss, trained) in enumerate(zip(losses, targets, strict=True)):
        if loss is None or loss in values.have_gradient(trained):
            continue
        which = f" of TrainOp {number}" if len(losses) > 1 else ""
        _logger.warning(
            "%sThe loss%s does not depend on what is trained (variables['params'], or what of= names of it), so its "
            "gradient is zero and nothing will be learnt. Compute it from the `variables` that model_fn is given: def "
            "model_fn(variables, features, ...) and module.apply(variables, features). A model that makes or keeps its "
            "own variables, and a loss of argmax or of comparisons, have no gradient.",
            "" if takes_variables else "model_fn does not name `variables`. ",
            which,
        )


def warn_of_stale_collections(
    values: Dependence, variables: Variables, inputs: PyTree, written: Collection[str]
) -> None:
    """Warns of each collection that no TrainOp writes, although model_fn seems to compute its new value.

    It seems so if model_fn computes a new value of each of the leaves, which nothing uses, or if the collection was
    made by `ExponentialMovingAverage.init`. A collection that is only read, or not even that, is a constant.

    Args:
      values: those of the traced model_fn.
      variables: the collections.
      inputs: for each leaf of the variables its number in `values`, in the same tree.
      written: the names of the collections that some TrainOp writes.
    """
    for name, collection in variables.items():
        if name == "params" or name in written:
            continue
        leaves = jax.tree.leaves(collection)
        numbers = jax.tree.leaves(inputs[name])
        if name == COLLECTION and _are_averages(variables):
            _logger.warning(
                "The moving averages in the collection %r are never updated: no TrainOp writes them. Write "
                "minimize(..., after=averages.update(step)).",
                name,
            )
        elif leaves and all(map(values.has_unused_new_value, numbers, leaves)):
            _logger.warning(
                "The collection %r is never updated: model_fn computes new values of it (%s), but no TrainOp writes "
                "them. Hand them over: outputs, updates = module.apply(..., mutable=[%r]) and minimize(..., "
                "updates=updates).",
                name,
                ", ".join([f"{name}/{leaf}" if leaf else name for leaf in named_leaves(collection)][:3]),
                name,
            )


def _are_averages(variables: Variables) -> bool:
    """Whether the collection of averages is what `ExponentialMovingAverage.init` makes: a copy of other collections."""
    averages = variables[COLLECTION]
    if not isinstance(averages, dict) or not averages:
        return False
    return all(
        name in variables and named_leaves(part).keys() == named_leaves(variables[name]).keys()
        for name, part in averages.items()
    )
