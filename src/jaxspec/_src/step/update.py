"""One training update on a shard: gradients, averaged over shards, then the TrainOps in order."""

import contextlib
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxspec._src.base.types import PyTree, Variables
from jaxspec._src.spec.tpu_estimator_spec import TPUEstimatorSpec
from jaxspec._src.spec.train_op import as_train_ops
from jaxspec._src.step.axis import same_on_all_shards, unvarying, varying, varying_as
from jaxspec._src.step.detached_op import DetachedOp, detach
from jaxspec._src.step.gradients import ModelCall, pull_back_one, reduced, spec_loss, value_and_grad
from jaxspec._src.step.jaxprs import debugging
from jaxspec._src.step.model import outputs_of
from jaxspec._src.step.variables import checked_collections, merge, select


def apply_train_ops(
    call: ModelCall, variables: Variables, opt_state: PyTree
) -> tuple[Variables, PyTree, TPUEstimatorSpec]:
    """Runs model_fn and applies the TrainOps of its spec in order.

    Args:
      call: model_fn on one shard's batch.
      variables, opt_state: the same on all shards.

    Returns:
      (variables, optimizer state, what the step returns of the spec): the first two are the same on all shards.
    """
    with contextlib.suppress(*[jax.errors.UnexpectedTracerError] if debugging() else []):
        return _apply(call, variables, opt_state, differentiate=True)
    # Under jax.disable_jit(), a function of a TrainOp has captured an array that is being differentiated: model_fn runs
    # again, and is not differentiated.
    return _apply(call, variables, opt_state, differentiate=False)


def _apply(
    call: ModelCall, variables: Variables, opt_state: PyTree, *, differentiate: bool
) -> tuple[Variables, PyTree, TPUEstimatorSpec]:
    loss, spec, ops, gradient = _run_model(call, variables, opt_state, differentiate=differentiate)
    new_opt_states = []
    for number, (op, state) in enumerate(zip(ops, _per_op(opt_state, len(ops)), strict=True)):
        params, updates = variables["params"], op.updates
        target = select(params, op.of)
        if op.grads is not None:
            value, grads = loss, op.grads
        elif op.loss is not None:
            value, grads, more = value_and_grad(op.loss, variables, target)
            updates = {**more, **(updates or {})}
        elif gradient is not None and not number:
            value, grads = loss, select(params, op.of, gradient())
        else:  # the TrainOp before has changed the variables
            value, grads, _ = value_and_grad(spec_loss(call), variables, target)
        grads, value = reduced((grads, value), op.reduction)
        update = varying_as(same_on_all_shards(op.update, keep_equal=True), op.update)
        params, state = unvarying(update(op.value_loss, grads, state, variables, value))
        variables = {**variables, "params": params}
        if updates:
            variables = {**variables, **same_on_all_shards(checked_collections(updates, variables, "updates"))}
        if op.after is not None:
            new = op.after(variables)
            variables = {**variables, **(unvarying(new) if op.after_is_same else same_on_all_shards(new))}
        new_opt_states.append(state)
    return variables, new_opt_states[0] if len(ops) == 1 else tuple(new_opt_states), spec


def _per_op(opt_state: PyTree, count: int) -> tuple[PyTree, ...]:
    """The optimizer state of each TrainOp. That of a single one is not wrapped in a tuple."""
    states: tuple[PyTree, ...] = (opt_state,) if count == 1 else opt_state
    if len(states) != count:
        raise ValueError(f"train_op has {count} TrainOps, but the state was made for {len(states)}.")
    return states


def _run_model(
    call: ModelCall, variables: Variables, opt_state: PyTree, *, differentiate: bool
) -> tuple[jax.Array, TPUEstimatorSpec, list[DetachedOp], Callable[[], PyTree] | None]:
    """The loss, what the step returns of the spec, its TrainOps, and a function that computes the gradient of the loss.

    Only the spec says whether that gradient is needed. It nearly always is, so model_fn is differentiated at once, and
    runs once. The gradient has the tree of params; it is None if model_fn was not differentiated, or cannot be.
    """
    mine = varying(variables)
    params = mine["params"]

    def loss_of(selected: PyTree) -> tuple[jax.Array, tuple[TPUEstimatorSpec, list[DetachedOp]]]:
        spec = call({**mine, "params": merge(params, selected)})
        ops = as_train_ops(spec.train_op)
        states = _per_op(opt_state, len(ops))
        # Varying: otherwise the gradient of a loss that model_fn has averaged itself would be that of one shard's
        # share.
        loss = varying(jnp.asarray(spec.loss))
        detached = [detach(op, call, loss, variables, state) for op, state in zip(ops, states, strict=True)]
        return loss, jax.tree.map(jnp.asarray, (outputs_of(spec), detached))

    if not differentiate:
        loss, (spec, ops) = loss_of(params)
        return loss, spec, ops, None
    try:
        loss, pullback, (spec, ops) = jax.vjp(loss_of, select(params, None), has_aux=True)
    except Exception:
        # Either model_fn fails, and then fails again here, with a shorter traceback; or it cannot be differentiated.
        loss, (spec, ops) = loss_of(params)
        if any(op.loss is None and op.grads is None for op in ops):
            raise
        return loss, spec, ops, None
    return loss, spec, ops, lambda: merge(params, pull_back_one(loss, pullback))
