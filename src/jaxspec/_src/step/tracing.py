"""What one abstract run of model_fn tells: the spec, the state of the optimizer, what depends on what."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp

from jaxspec._src.base.types import PyTree
from jaxspec._src.spec.mode import ModeKeys
from jaxspec._src.spec.tpu_estimator_spec import TPUEstimatorSpec
from jaxspec._src.spec.train_op import as_train_ops
from jaxspec._src.step.axis import bind_shard_axis
from jaxspec._src.step.debugging import debugging
from jaxspec._src.step.dependence import Dependence
from jaxspec._src.step.init import strong_arrays
from jaxspec._src.step.leaving import leaving_device
from jaxspec._src.step.lifting import needed_part
from jaxspec._src.step.model import Model
from jaxspec._src.step.stale import warn_of_losses_without_gradient, warn_of_stale_collections
from jaxspec._src.step.trainable import select
from jaxspec._src.step.update import losses_and_collections


class TrainOpTrace(NamedTuple):
    """What one abstract run of model_fn in TRAIN tells."""

    spec: TPUEstimatorSpec
    """The spec as it leaves the device; its leaves are the `jax.ShapeDtypeStruct` of one shard."""
    jaxpr: Any
    """What model_fn computes; None if it was not traced."""
    opt_state: Any
    """Shapes and dtypes of the optimizer state."""
    init_opt_state: Callable[[Any], Any]
    """Computes the optimizer state from variables."""


def trace_train_op(model: Model, variables: Any, rng: jax.Array, features: Any, labels: Any) -> TrainOpTrace:
    """Traces model_fn once in TRAIN. Optimizers are made inside model_fn, so their state is made there too.

    Under `jax.disable_jit()` nothing is traced, and `variables` must be arrays.
    """
    specs: list[TPUEstimatorSpec] = []
    written: set[str] = set()
    trained: list[Any] = []

    def init_opt_state(variables: Any, rng: Any, features: Any, labels: Any) -> tuple[Any, Any, Any]:
        def call(variables: Any) -> TPUEstimatorSpec:
            return model(ModeKeys.TRAIN, variables, features, labels, step=jnp.zeros((), jnp.int32), rng=rng)

        spec = call(variables)
        ops = as_train_ops(spec.train_op)
        specs.append(shapes(leaving_device(spec)))
        states = tuple(op.optimizer.init(select(variables["params"], op.of)) for op in ops)
        opt_state = strong_arrays(states[0] if len(ops) == 1 else states)
        if debugging():
            return opt_state, None, None
        losses, collections = losses_and_collections(ops, spec.loss, variables)
        trained.extend(op.of for op in ops)
        written.update(name for new in collections for name in new)
        return opt_state, losses, (jax.tree.leaves(spec), collections)

    bound = bind_shard_axis(init_opt_state)
    if debugging():
        features, labels = jax.tree.map(jnp.asarray, (features, labels))
        opt_state, _, _ = bound(variables, rng, features, labels)
        return TrainOpTrace(
            specs[-1], None, shapes(opt_state), lambda variables: bound(variables, rng, features, labels)[0]
        )
    arguments = (variables, rng, features, labels)
    program = jax.jit(bound).trace(*arguments)
    opt_state = shapes(program.out_info[0])
    params = variables["params"]
    values = Dependence(program.jaxpr.jaxpr)
    numbers = jax.tree.unflatten(jax.tree.structure(arguments), values.inputs)[0]
    losses = jax.tree.unflatten(jax.tree.structure(program.out_info), values.outputs)[1]
    targets = [jax.tree.leaves(select(params, of, numbers["params"])) for of in trained]
    warn_of_losses_without_gradient(values, losses, targets, takes_variables=model.takes_variables)
    warn_of_stale_collections(values, variables, numbers, written)

    def compute(variables: Any) -> Any:
        # Only what the optimizer needs: the callbacks of model_fn belong to steps.
        treedef: Any
        leaves, treedef = jax.tree.flatten(opt_state)
        closed = jax.extend.core.ClosedJaxpr(needed_part(program.jaxpr.jaxpr, len(leaves)), program.jaxpr.consts)
        flat = jax.jit(jax.extend.core.jaxpr_as_fun(closed))(*jax.tree.leaves((variables, rng, features, labels)))
        return treedef.unflatten(flat)

    return TrainOpTrace(specs[0], program.jaxpr, opt_state, compute)


def trace_spec(
    step: Callable[..., TPUEstimatorSpec], state: PyTree, features: Any, labels: Any
) -> tuple[TPUEstimatorSpec, Any]:
    """(the spec that an eval or predict step returns, with `jax.ShapeDtypeStruct` leaves; the step's jaxpr).

    Under `jax.disable_jit()` the step is run, and there is no jaxpr.
    """
    if debugging():
        return shapes(step(state, *jax.tree.map(jnp.asarray, (features, labels)))), None
    program = jax.jit(step).trace(state, features, labels)
    return shapes(program.out_info), program.jaxpr


def shapes(tree: Any) -> Any:
    """The shapes and dtypes of the leaves."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jax.dtypes.result_type(x)), tree)
