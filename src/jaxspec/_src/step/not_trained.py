"""Warns of variables that get no gradient and no update, though model_fn seems to train them."""

import logging
from collections.abc import Collection, Sequence

import jax
import jax.extend

from jaxspec._src.base.arrays import named_leaves
from jaxspec._src.base.types import PyTree, Variables
from jaxspec._src.step.dependence import Dependence, Value
from jaxspec._src.step.moving_average import COLLECTION

_logger = logging.getLogger("jaxspec")


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
