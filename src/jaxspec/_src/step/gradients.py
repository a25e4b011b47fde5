"""Losses of this shard and their gradients, and how both are reduced over shards."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from jaxspec._src.base.arrays import describe_array
from jaxspec._src.base.types import PyTree, T, Variables
from jaxspec._src.spec.tpu_estimator_spec import TPUEstimatorSpec
from jaxspec._src.spec.train_op import Reduction
from jaxspec._src.step.axis import mean_over_shards, sum_over_shards
from jaxspec._src.step.dead_code import without_callbacks
from jaxspec._src.step.replication import of_shard_0, varying
from jaxspec._src.step.trainable import merge

ModelCall: TypeAlias = Callable[[Variables], TPUEstimatorSpec]
"""model_fn on this shard's batch, as a function of the variables alone."""
Loss: TypeAlias = Callable[[Variables], tuple[jax.Array, Variables]]
"""`variables -> (scalar of this shard's batch, updates)`."""


def own_loss(loss_fn: Callable[[Variables], PyTree]) -> Loss:
    """The loss function that was given to `minimize`."""

    def loss_of(variables: Variables) -> tuple[jax.Array, Variables]:
        out = loss_fn(variables)
        loss, updates = out if isinstance(out, tuple) else (out, {})
        if jnp.size(loss) != 1:
            raise ValueError(f"the loss of minimize must be scalar, got {describe_array(loss)}.")
        return jnp.reshape(loss, ()), dict(updates)

    return loss_of


def spec_loss(call: ModelCall) -> Loss:
    """The loss of the spec, for other variables than those that the step began with. Without updates or callbacks."""

    def loss_of(variables: Variables) -> tuple[jax.Array, Variables]:
        return jnp.asarray(call(variables).loss), {}

    return without_callbacks(loss_of)


def value_and_grad(loss_of: Loss, variables: Variables, target: T) -> tuple[jax.Array, T, Variables]:
    """This shard's loss, its gradient with respect to `target`, and its updates.

    Args:
      target: selected leaves of params (see `select`), which replace those of `variables`.
    """
    mine = varying(variables)

    def at(target: T) -> tuple[jax.Array, Variables]:
        loss, updates = loss_of({**mine, "params": merge(mine["params"], target)})
        return varying(loss), updates

    loss, pullback, updates = jax.vjp(at, varying(target), has_aux=True)
    return loss, pull_back_one(loss, pullback), updates


def pull_back_one(loss: jax.Array, pullback: Callable[[jax.Array], tuple[T]]) -> T:
    """The gradient of a loss, from what `jax.vjp` returns for it."""
    if not jnp.issubdtype(loss.dtype, jnp.floating):
        raise TypeError(f"loss must be floating to be minimized, got {describe_array(loss)}.")
    return pullback(varying(jnp.ones_like(loss)))[0]


def value_fn(loss_of: Loss, variables: Variables, reduction: Reduction) -> Callable[[PyTree], jax.Array]:
    """The loss as a function of what is trained, for line searches: value and gradient are reduced over shards."""

    def value_and_reduced_grad(target: PyTree) -> tuple[jax.Array, PyTree]:
        value, grads, _ = value_and_grad(loss_of, variables, target)
        return reduced(value, reduction), reduced(grads, reduction)

    @jax.custom_jvp
    def value_fn(target: PyTree) -> jax.Array:
        return value_and_reduced_grad(target)[0]

    @value_fn.defjvp
    def _(primals: tuple[PyTree], tangents: tuple[PyTree]) -> tuple[jax.Array, jax.Array]:
        value, grads = value_and_reduced_grad(*primals)
        products = jax.tree.map(lambda g, t: jnp.sum(g * t).astype(value.dtype), grads, tangents[0])
        return value, sum(jax.tree.leaves(products), jnp.zeros_like(value))

    return value_fn


def reduced(tree: PyTree, reduction: Reduction) -> PyTree:
    """The leaves reduced over shards, as `minimize(reduction=...)` says."""
    return {"mean": mean_over_shards, "sum": sum_over_shards, None: of_shard_0}[reduction](tree)
