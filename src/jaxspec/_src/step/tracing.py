"""Traces model_fn once without running it: the spec, the shapes of the optimizer state, what depends on what."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr

from jaxspec._src.base.types import Array, Batch, PyTree, T, Variables
from jaxspec._src.spec.mode import ModeKeys
from jaxspec._src.spec.tpu_estimator_spec import TPUEstimatorSpec
from jaxspec._src.spec.train_op import Selection, TrainOp, as_train_ops
from jaxspec._src.step.axis import bind_shard_axis
from jaxspec._src.step.dependence import Dependence
from jaxspec._src.step.gradients import own_loss
from jaxspec._src.step.jaxprs import debugging, needed_part
from jaxspec._src.step.model import Model, outputs_of
from jaxspec._src.step.not_trained import warn_of_losses_without_gradient, warn_of_stale_collections
from jaxspec._src.step.variables import checked_collections, select, strong_arrays


class TrainOpTrace(NamedTuple):
    """What one abstract run of model_fn in TRAIN shows."""

    spec: TPUEstimatorSpec
    """What a step returns of the spec; its leaves are the `jax.ShapeDtypeStruct` of one shard."""
    jaxpr: Jaxpr | None
    """What model_fn computes; None if it was not traced."""
    opt_state: PyTree
    """Shapes and dtypes of the optimizer state."""
    init_opt_state: Callable[[Variables], PyTree]
    """Computes the optimizer state from variables."""


def trace_train_op(model: Model, variables: Variables, rng: jax.Array, features: Batch, labels: Batch) -> TrainOpTrace:
    """Traces model_fn once in TRAIN. Optimizers are made inside model_fn, so their state is made there too.

    Under `jax.disable_jit()` nothing is traced, and `variables` must be arrays.
    """
    specs: list[TPUEstimatorSpec] = []
    selections: list[Selection] = []
    written: set[str] = set()

    @bind_shard_axis
    def run(
        variables: Variables, rng: jax.Array, features: Batch, labels: Batch
    ) -> tuple[PyTree, list[Array | None], PyTree]:
        spec = model(ModeKeys.TRAIN, variables, features, labels, step=jnp.zeros((), jnp.int32), rng=rng)
        ops = as_train_ops(spec.train_op)
        selections.extend(op.of for op in ops)  # not the ops: they hold tracers
        specs.append(shapes(outputs_of(spec)))
        states = tuple(op.optimizer.init(select(variables["params"], op.of)) for op in ops)
        opt_state = strong_arrays(states[0] if len(ops) == 1 else states)
        if debugging():
            return opt_state, [], None
        losses, collections = _losses_and_collections(ops, spec.loss, variables)
        written.update(name for new in collections for name in new)
        return opt_state, losses, (jax.tree.leaves(spec), collections)

    if debugging():
        features, labels = jax.tree.map(jnp.asarray, (features, labels))

        def compute_eagerly(variables: Variables) -> PyTree:
            return run(variables, rng, features, labels)[0]

        opt_state = shapes(compute_eagerly(variables))
        return TrainOpTrace(specs[-1], None, opt_state, compute_eagerly)
    arguments = (variables, rng, features, labels)
    program = jax.jit(run).trace(*arguments)
    jaxpr = program.jaxpr.jaxpr
    opt_state = shapes(program.out_info[0])
    values = Dependence(jaxpr)
    numbers = jax.tree.unflatten(jax.tree.structure(arguments), values.inputs)[0]
    losses = jax.tree.unflatten(jax.tree.structure(program.out_info), values.outputs)[1]
    targets = [jax.tree.leaves(select(variables["params"], of, numbers["params"])) for of in selections]
    warn_of_losses_without_gradient(values, losses, targets, takes_variables=model.takes_variables)
    warn_of_stale_collections(values, variables, numbers, written)

    def compute(variables: Variables) -> PyTree:
        # Only what the optimizer needs: the callbacks of model_fn belong to steps.
        closed = ClosedJaxpr(needed_part(jaxpr, len(jax.tree.leaves(opt_state))), program.jaxpr.consts)
        flat = jax.jit(jax.extend.core.jaxpr_as_fun(closed))(*jax.tree.leaves((variables, rng, features, labels)))
        return jax.tree.unflatten(jax.tree.structure(opt_state), flat)

    return TrainOpTrace(specs[0], jaxpr, opt_state, compute)


def _losses_and_collections(
    ops: tuple[TrainOp, ...], spec_loss: Array | None, variables: Variables
) -> tuple[list[Array | None], list[Variables]]:
    """(for each TrainOp the loss that is differentiated, None where gradients are given; all collections that are
    written)."""
    losses: list[Array | None] = []
    written: list[Variables] = []
    for op in ops:
        loss = None if op.grads is not None else spec_loss
        if op.loss is not None:
            loss, updates = own_loss(op.loss)(variables)
            written.append(updates)
        losses.append(loss)
        written.append(checked_collections(op.updates or {}, variables, "updates"))
        if op.after is not None:
            written.append(checked_collections(op.after(variables), variables, "after"))
    return losses, written


def trace_spec(
    step: Callable[..., TPUEstimatorSpec], state: PyTree, features: Batch, labels: Batch
) -> tuple[TPUEstimatorSpec, Jaxpr | None]:
    """(the spec that an eval or predict step returns, with `jax.ShapeDtypeStruct` leaves; the step's jaxpr).

    Under `jax.disable_jit()` the step is run, and there is no jaxpr.
    """
    if debugging():
        return shapes(step(state, *jax.tree.map(jnp.asarray, (features, labels)))), None
    program = jax.jit(step).trace(state, features, labels)
    return shapes(program.out_info), program.jaxpr.jaxpr


def shapes(tree: T) -> T:
    """The tree with a `jax.ShapeDtypeStruct` for each leaf."""
    abstract: T = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jax.dtypes.result_type(x)), tree)
    return abstract
