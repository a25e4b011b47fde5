"""A TrainOp as a pytree of the arrays it has captured, so that it can leave a trace and be applied later."""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from jaxspec._src.base.callables import call_by_name
from jaxspec._src.base.types import PyTree, Variables
from jaxspec._src.spec.train_op import Reduction, Selection, TrainOp
from jaxspec._src.step.axis import varying
from jaxspec._src.step.gradients import Loss, ModelCall, own_loss, spec_loss, value_fn
from jaxspec._src.step.jaxprs import Converted, convert_closure, without_callbacks
from jaxspec._src.step.variables import checked_collections, merge, select

_STATIC = {"static": True}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DetachedOp:
    """A TrainOp as a pytree: the arrays that its functions have captured are leaves."""

    grads: PyTree
    """The gradients of this shard that `apply_gradients` was given, or None."""
    updates: PyTree
    """New collections of this shard, or None."""
    loss: Converted | None
    """The `Loss` that `minimize` was given."""
    update: Converted
    """`(value_loss, grads, opt_state, variables, value) -> (params, opt_state)`."""
    value_loss: Converted | None
    """The `Loss` that the optimizer evaluates itself, as a line search does. It captures this shard's batch."""
    after: Converted | None
    """`variables -> collections`."""
    of: Selection = dataclasses.field(metadata=_STATIC)
    reduction: Reduction = dataclasses.field(metadata=_STATIC)
    after_is_same: bool = dataclasses.field(metadata=_STATIC)
    """Whether `after` returns the same on all shards, so that nothing needs to be reduced."""


def detach(op: TrainOp, call: ModelCall, loss: jax.Array, variables: Variables, opt_state: PyTree) -> DetachedOp:
    """The TrainOp of one step. To be called in the trace in which model_fn ran.

    Args:
      call: model_fn.
      loss: the loss of its spec.
      variables, opt_state: those of the step; only their shapes and dtypes matter, and the structure of params.
    """
    params = variables["params"]
    grads = None if op.grads is None else select(params, op.of, _embedded(op.grads, op.of, params))
    target = select(params, op.of) if grads is None else grads
    update, value_loss = _detach_update(op, call, loss, target, opt_state, variables)
    after = op.after
    return DetachedOp(
        grads,
        op.updates,
        None if op.loss is None else convert_closure(own_loss(op.loss), varying(variables)),
        update,
        value_loss,
        None if after is None else convert_closure(lambda v: checked_collections(after(v), v, "after"), variables),
        op.of,
        op.reduction,
        getattr(after, "same_on_all_shards", False),
    )


def _embedded(grads: PyTree, of: Selection, params: PyTree) -> PyTree:
    """Gradients of the keys `of` alone, in the tree of `params`; any other gradients as they are."""
    if isinstance(of, tuple) and isinstance(grads, Mapping) and set(grads) == set(of) and set(grads) != set(params):
        return {**params, **grads}
    return grads


def _detach_update(
    op: TrainOp, call: ModelCall, loss: jax.Array, grads: PyTree, opt_state: PyTree, variables: Variables
) -> tuple[Converted, Converted | None]:
    """The `update` and `value_loss` of a DetachedOp."""
    # New arrays: reduced gradients are the same on all shards, and those at hand may vary.
    grads = jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), jnp.result_type(x)), grads)
    arguments = (grads, opt_state, variables, jnp.zeros((), jnp.result_type(loss)))
    evaluate = spec_loss(call) if op.loss is None else without_callbacks(own_loss(op.loss))
    evaluated = False

    def noticed(variables: Variables) -> tuple[jax.Array, Variables]:
        nonlocal evaluated
        evaluated = True
        return evaluate(variables)

    update = convert_closure(lambda _, *args: _update(op, noticed, *args), None, *arguments)
    if not evaluated:
        return update, None
    value_loss = convert_closure(evaluate, varying(variables))
    return convert_closure(functools.partial(_update, op), value_loss, *arguments), value_loss


def _update(
    op: TrainOp, loss_of: Loss, grads: PyTree, opt_state: PyTree, variables: Variables, value: jax.Array
) -> tuple[PyTree, PyTree]:
    """(params, optimizer state) after one update."""
    params = variables["params"]
    target = select(params, op.of)
    extra = {"value": value, "grad": grads, "value_fn": value_fn(loss_of, variables, op.reduction)}
    changes, opt_state = call_by_name(functools.partial(op.optimizer.update, grads, opt_state, target), extra)
    return merge(params, optax.apply_updates(target, changes)), opt_state
