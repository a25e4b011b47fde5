"""One update of the state: gradients, optimizers, collections."""

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxspec._src.base.arrays import describe_array
from jaxspec._src.base.callables import argument_names
from jaxspec._src.spec.tpu_estimator_spec import TPUEstimatorSpec
from jaxspec._src.spec.train_op import TrainOp, as_train_ops
from jaxspec._src.step.axis import (
    agreed,
    mean_over_shards,
    of_shard_0,
    same_on_all_shards,
    sum_over_shards,
    unvarying,
    varying,
    varying_as,
)
from jaxspec._src.step.debugging import debugging, values_of_tracers
from jaxspec._src.step.lifting import Lifted, lift, silent
from jaxspec._src.step.trainable import merge, select
from jaxspec._src.step.variables import checked_like

Call = Callable[[Any], TPUEstimatorSpec]
"""model_fn as a function of the variables alone."""


class _Part(NamedTuple):
    """A TrainOp outside of the trace of model_fn: its functions without what they have captured there."""

    of: Any
    reduction: Any
    given: bool
    """Whether it brings gradients of its own."""
    loss: Lifted | None
    """`variables -> (loss, updates)`."""
    update: Lifted
    """`(arrays of value_fn, gradients, optimizer state, variables, value) -> (params, optimizer state)`."""
    after: Lifted | None
    """`variables -> collections`."""
    after_is_same: bool
    """Whether `after` gives the same on all shards, so that nothing need be reduced."""


class _Values(NamedTuple):
    """The arrays that belong to a `_Part`."""

    grads: Any
    updates: Any
    of_loss: list[Any]
    of_update: list[Any]
    """What the optimizer itself has captured: made the same on all shards before it is used."""
    of_value_fn: list[Any]
    """What the loss that the optimizer evaluates has captured: this shard's batch above all."""
    of_after: list[Any]


def apply_train_ops(
    call: Call, ship: Callable[[TPUEstimatorSpec], TPUEstimatorSpec], variables: Any, opt_state: Any
) -> tuple[Any, Any, TPUEstimatorSpec]:
    """Runs the TrainOps of the spec in order.

    Args:
      call: model_fn on one shard's batch.
      ship: takes from a spec what is not to leave the device.
      variables, opt_state: the same on all shards.

    Returns:
      (variables, optimizer state, spec): the first two the same on all shards; the spec is this shard's.
    """
    if debugging():
        with contextlib.suppress(jax.errors.UnexpectedTracerError):
            return _apply_train_ops(call, ship, variables, opt_state, differentiate=True)
        # A function of a TrainOp has captured an array under differentiation: let model_fn run without.
        return _apply_train_ops(call, ship, variables, opt_state, differentiate=False)
    return _apply_train_ops(call, ship, variables, opt_state, differentiate=True)


def _apply_train_ops(
    call: Call,
    ship: Callable[[TPUEstimatorSpec], TPUEstimatorSpec],
    variables: Any,
    opt_state: Any,
    *,
    differentiate: bool,
) -> tuple[Any, Any, TPUEstimatorSpec]:
    run = _run_model(call, ship, variables, opt_state, differentiate=differentiate)
    loss, spec, parts, values, gradient = run
    opt_states = (opt_state,) if len(parts) == 1 else opt_state
    new_opt_states = []
    for number, (part, own, state) in enumerate(zip(parts, values, opt_states, strict=True)):
        updates = own.updates
        target = select(variables["params"], part.of)
        if part.given:
            value, grads = loss, own.grads
        elif part.loss is not None:
            value, grads, more = _value_and_grad(functools.partial(part.loss, own.of_loss), variables, target)
            updates = {**more, **(updates or {})}
        elif number:  # the predecessor has changed the variables
            value, grads, _ = _value_and_grad(_spec_loss(call), variables, target)
        else:
            value, grads = loss, select(variables["params"], part.of, gradient())
        grads, value = _reduce(grads, part.reduction), _reduce(value, part.reduction)
        captured = varying_as(agreed(own.of_update), own.of_update)
        params, state = unvarying(part.update(captured, own.of_value_fn, grads, state, variables, value))
        variables = {**variables, "params": params}
        if updates:
            variables = {**variables, **same_on_all_shards(_collections(updates, variables, "updates"))}
        if part.after is not None:
            new = part.after(own.of_after, variables)
            variables = {**variables, **(unvarying(new) if part.after_is_same else same_on_all_shards(new))}
        new_opt_states.append(state)
    return variables, new_opt_states[0] if len(parts) == 1 else tuple(new_opt_states), spec


def _run_model(
    call: Call,
    ship: Callable[[TPUEstimatorSpec], TPUEstimatorSpec],
    variables: Any,
    opt_state: Any,
    *,
    differentiate: bool,
) -> tuple[Any, TPUEstimatorSpec, list[_Part], list[_Values], Callable[[], Any]]:
    """(the spec's loss, the spec, the parts of its TrainOps, their arrays, a function that gives the gradient of the loss).

    Whether the gradient is wanted stands in the spec, so model_fn is run under differentiation at once: nearly
    always it is, and model_fn then runs once. The gradient has the tree of params.
    """
    mine = varying(variables)
    params = mine["params"]
    parts: list[_Part] = []

    def loss_of(selected: Any) -> tuple[Any, Any]:
        parts.clear()
        spec = call({**mine, "params": merge(params, selected)})
        ops = as_train_ops(spec.train_op)
        opt_states = (opt_state,) if len(ops) == 1 else opt_state
        if len(opt_states) != len(ops):
            raise ValueError(f"train_op has {len(ops)} TrainOps, but the state was made for {len(opt_states)}.")
        values = []
        for op, state in zip(ops, opt_states, strict=True):
            part, own = _take_apart(op, call, spec.loss, variables, state)
            parts.append(part)
            values.append(own)
        # Varying: otherwise the gradient of a loss that model_fn has averaged itself would be that of one shard's share.
        return varying(jnp.asarray(spec.loss)), jax.tree.map(jnp.asarray, (ship(spec), values))

    def plain() -> Any:
        loss, (spec, values) = loss_of(params)
        return loss, spec, values

    if not differentiate:
        loss, spec, values = plain()
        return loss, spec, parts, values, lambda: _gradient_of_params(_spec_loss(call), variables)
    try:
        with values_of_tracers() if debugging() else contextlib.nullcontext():
            loss, pullback, (spec, values) = jax.vjp(loss_of, select(params, None), has_aux=True)
    except Exception as error:
        # Either model_fn fails, and then fails again here, with a shorter traceback; or it cannot be differentiated.
        loss, spec, values = plain()
        if any(part.loss is None and not part.given for part in parts):
            raise
        failure = error

        def refuse() -> Any:
            raise failure

        return loss, spec, parts, values, refuse

    def gradient() -> Any:
        _check_floating(loss)
        return merge(params, pullback(varying(jnp.ones_like(loss)))[0])

    return loss, spec, parts, values, gradient


def _take_apart(op: TrainOp, call: Call, loss: Any, variables: Any, opt_state: Any) -> tuple[_Part, _Values]:
    """Runs where model_fn ran, and where what the TrainOp has captured is valid."""
    params = variables["params"]
    target = select(params, op.of)
    grads = None if op.grads is None else select(params, op.of, _embed(op.grads, op.of, params))
    own_loss: tuple[Any, Any] = (None, [])
    if op.loss is not None:
        own_loss = lift(_own_loss(op.loss), varying(variables))
    after: tuple[Any, Any] = (None, [])
    if op.after is not None:
        make = op.after
        after = lift(lambda v: _collections(make(v), v, "after"), variables)
    update, of_update, of_value_fn = _lift_update(
        op, call, loss, target if grads is None else grads, opt_state, variables
    )
    same = getattr(op.after, "same_on_all_shards", False)
    part = _Part(op.of, op.reduction, op.grads is not None, own_loss[0], update, after[0], same)
    return part, _Values(grads, op.updates, own_loss[1], of_update, of_value_fn, after[1])


def _lift_update(
    op: TrainOp, call: Call, loss: Any, grads: Any, opt_state: Any, variables: Any
) -> tuple[Lifted, list[Any], list[Any]]:
    """(the lifted optimizer, what it has captured, what the loss that it evaluates has captured)."""
    # Of the type that they will have when they are reduced: the same on all shards.
    grads = jax.tree.map(lambda x: jnp.zeros(jnp.shape(x), jnp.result_type(x)), grads)
    arguments = (grads, opt_state, variables, jnp.zeros((), jnp.result_type(loss)))
    evaluate = _spec_loss(call) if op.loss is None else silent(_own_loss(op.loss))
    evaluated: list[Any] = []

    def noticed(variables: Any) -> Any:
        evaluated.append(True)
        return evaluate(variables)

    lifted, of_update = lift(lambda _, *args: _update(op, noticed, *args), [], *arguments)
    if not evaluated:
        return lifted, of_update, []
    lifted_loss, of_loss = lift(evaluate, varying(variables))
    lifted, of_update = lift(
        lambda captured, *args: _update(op, lambda v: lifted_loss(captured, v), *args), of_loss, *arguments
    )
    return lifted, of_update, of_loss


def losses_and_collections(
    ops: tuple[TrainOp, ...], spec_loss: Any, variables: Any
) -> tuple[list[Any], list[dict[str, Any]]]:
    """What there is to know of the TrainOps without running their optimizers, where model_fn ran.

    Returns:
      (for each TrainOp the loss that is differentiated, None where gradients are given; all collections that are written).
    """
    losses, written = [], []
    for op in ops:
        loss = None if op.grads is not None else spec_loss
        if op.loss is not None:
            loss, updates = _own_loss(op.loss)(variables)
            written.append(updates)
        losses.append(loss)
        written.append(_collections(op.updates or {}, variables, "updates"))
        if op.after is not None:
            written.append(_collections(op.after(variables), variables, "after"))
    return losses, written


def _own_loss(loss_fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The loss of `minimize` as `variables -> (scalar, updates)`."""

    def loss_of(variables: Any) -> tuple[Any, Any]:
        out = loss_fn(variables)
        loss, updates = out if isinstance(out, tuple) else (out, {})
        if jnp.size(loss) != 1:
            raise ValueError(f"the loss of minimize must be scalar, got {describe_array(loss)}.")
        return jnp.reshape(loss, ()), dict(updates)

    return loss_of


def _spec_loss(call: Call) -> Callable[[Any], Any]:
    """The spec's loss as `variables -> (scalar, no updates)`, at other variables than the step's own."""
    return silent(lambda variables: (jnp.asarray(call(variables).loss), {}))


def _update(
    op: TrainOp, loss_of: Callable[[Any], Any], grads: Any, opt_state: Any, variables: Any, value: Any
) -> tuple[Any, Any]:
    """(params, optimizer state) after one update."""
    params = variables["params"]
    target = select(params, op.of)
    extra = {"value": value, "grad": grads, "value_fn": _value_fn(loss_of, variables, op.reduction)}
    names, takes_any = argument_names(op.optimizer.update)
    extra = {name: x for name, x in extra.items() if takes_any or name in names}
    changes, opt_state = op.optimizer.update(grads, opt_state, target, **extra)
    return merge(params, optax.apply_updates(target, changes)), opt_state


def _value_fn(loss_of: Callable[[Any], Any], variables: Any, reduction: Any) -> Callable[[Any], Any]:
    """The loss as a function of what is trained, for line searches: value and gradient are reduced over shards."""

    def value_and_grad(target: Any) -> tuple[Any, Any]:
        value, grads, _ = _value_and_grad(loss_of, variables, target)
        return _reduce(value, reduction), _reduce(grads, reduction)

    @jax.custom_jvp
    def value_fn(target: Any) -> Any:
        return value_and_grad(target)[0]

    @value_fn.defjvp
    def _(primals: Any, tangents: Any) -> tuple[Any, Any]:
        value, grads = value_and_grad(*primals)
        products = jax.tree.map(lambda g, t: jnp.sum(g * t).astype(value.dtype), grads, tangents[0])
        return value, sum(jax.tree.leaves(products), jnp.zeros_like(value))

    return value_fn


def _value_and_grad(loss_of: Callable[[Any], Any], variables: Any, target: Any) -> tuple[Any, Any, Any]:
    """(this shard's loss, its gradient in the tree of `target`, its updates), at `variables` with `target` put in."""
    mine, target = varying(variables), varying(target)

    def at(target: Any) -> tuple[Any, Any]:
        loss, updates = loss_of({**mine, "params": merge(mine["params"], target)})
        return varying(loss), updates

    with values_of_tracers() if debugging() else contextlib.nullcontext():
        loss, pullback, updates = jax.vjp(at, target, has_aux=True)
    _check_floating(loss)
    return loss, pullback(varying(jnp.ones_like(loss)))[0], updates


def _gradient_of_params(loss_of: Callable[[Any], Any], variables: Any) -> Any:
    params = variables["params"]
    return merge(params, _value_and_grad(loss_of, variables, select(params, None))[1])


def _check_floating(loss: Any) -> None:
    if not jnp.issubdtype(loss.dtype, jnp.floating):
        raise TypeError(f"loss must be floating to be minimized, got {describe_array(loss)}.")


def _embed(grads: Any, of: Any, params: Any) -> Any:
    """Gradients of the keys `of` alone, in the tree of `params`; any other gradients as they are."""
    if isinstance(of, tuple) and isinstance(grads, Mapping) and set(grads) == set(of) and set(grads) != set(params):
        return {**params, **grads}
    return grads


def _reduce(x: Any, reduction: str | None) -> Any:
    if reduction == "mean":
        return mean_over_shards(x)
    if reduction == "sum":
        return sum_over_shards(x)
    return of_shard_0(x)


def _collections(new: Any, variables: Any, source: str) -> dict[str, Any]:
    """`new` collections, checked: those of `variables` keep their structure."""
    if not isinstance(new, Mapping):
        raise TypeError(f"{source} must give a dict of collections such as {{'batch_stats': ...}}, got {new!r}.")
    for name in new:
        if name not in variables:
            raise ValueError(
                f"{source} writes the collection {name!r}, which init_fn never made; it made {sorted(variables)}. "
                "Let init_fn return it too."
            )
    old = {name: variables[name] for name in new}
    checked: dict[str, Any] = checked_like(old, dict(new), f"{source} does not fit the variables")
    return checked
