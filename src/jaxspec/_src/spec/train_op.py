"""What a training step does to the variables: `train_op` of a spec."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import optax

from jaxspec._src.base.arrays import is_array
from jaxspec._src.base.removed_arguments import CALLS, explain_removed_arguments

Variables = Mapping[str, Any]
"""Collections by name: `{"params": the trainable ones, ...: the rest}`; each any pytree of arrays."""

Reduction = Literal["mean", "sum"] | None


@dataclasses.dataclass(frozen=True, eq=False)
class TrainOp:
    """One update of the variables. Made by `minimize` or `apply_gradients`; a pytree of `grads` and `updates`."""

    optimizer: optax.GradientTransformation
    loss: Callable[[Any], Any] | None
    grads: Any
    of: Any
    reduction: Reduction
    updates: Any
    after: Callable[[Any], Any] | None


def _flatten(op: TrainOp) -> tuple[tuple[tuple[Any, Any], ...], tuple[Any, ...]]:
    key = jax.tree_util.GetAttrKey
    return ((key("grads"), op.grads), (key("updates"), op.updates)), (
        op.optimizer,
        op.loss,
        op.of,
        op.reduction,
        op.after,
    )


def _unflatten(static: tuple[Any, ...], children: Iterable[Any]) -> TrainOp:
    optimizer, loss, of, reduction, after = static
    grads, updates = children
    return TrainOp(optimizer, loss, grads, of, reduction, updates, after)


jax.tree_util.register_pytree_with_keys(TrainOp, _flatten, _unflatten)


@explain_removed_arguments
def minimize(
    optimizer: Any,
    loss: Callable[[Any], Any] | None = None,
    *,
    of: Any = None,
    reduction: Reduction = "mean",
    updates: Variables | None = None,
    after: Callable[[Any], Variables] | None = None,
) -> TrainOp:
    """Differentiates a loss and lets `optimizer` update the parameters.

    Args:
      optimizer: an `optax.GradientTransformation`, or a `CrossShardOptimizer` around one. May be made inside
        model_fn, from `step` too: `optax.adam(schedule(step))`.
      loss: a pure function `variables -> scalar` or `variables -> (scalar, updates)` on this shard's batch. Left
        out, the spec's own `loss` is differentiated.
      of: what is trained: a key of `variables["params"]`, several keys, or a predicate on the path, such as
        `lambda path: path.startswith("Dense_0/")`; the path is that inside params. None: all of them.
      reduction: how gradients are reduced over shards before the optimizer sees them: "mean", "sum", or None
        when they are the same on every shard already (then shard 0's are used).
      updates: the new values of non-trainable collections, e.g. `{"batch_stats": ...}`. Floating leaves are
        averaged over shards, others take shard 0's value.
      after: a pure function of the updated variables, returning new values of collections: moving averages,
        clipped weights, target networks. Reduced over shards like `updates`.
    """
    if loss is not None and not callable(loss):
        raise TypeError(
            f"minimize: loss must be a function of the variables, given: {loss!r}. Leave it out to differentiate "
            "the spec's own loss, or pass `lambda variables: ...`."
        )
    return _train_op(optimizer, loss, None, of, reduction, updates, after)


@explain_removed_arguments
def apply_gradients(
    optimizer: Any,
    grads: Any,
    *,
    of: Any = None,
    reduction: Reduction = "mean",
    updates: Variables | None = None,
    after: Callable[[Any], Variables] | None = None,
) -> TrainOp:
    """Lets `optimizer` apply gradients that model_fn has computed itself.

    Args:
      optimizer: as in `minimize`.
      grads: this shard's gradients: the tree of `variables["params"]`, or, with `of` naming keys, a dict of
        those keys.
      of, reduction, updates, after: as in `minimize`.
    """
    if isinstance(grads, Iterator):
        raise TypeError(
            f"apply_gradients: grads must be the tree of gradients, as jax.grad gives it, got {type(grads).__name__}. {CALLS['apply_gradients']}"
        )
    if grads is None:
        raise ValueError("apply_gradients: grads is None; pass the gradients, or use minimize(optimizer).")
    return _train_op(optimizer, None, grads, of, reduction, updates, after)


def _train_op(
    optimizer: Any, loss: Any, grads: Any, of: Any, reduction: Reduction, updates: Any, after: Any
) -> TrainOp:
    if isinstance(optimizer, CrossShardOptimizer):  # the outermost one counts
        optimizer, reduction = optimizer.optimizer, optimizer.reduction
    if not is_optimizer(optimizer):
        raise TypeError(f"optimizer must be an optax.GradientTransformation, given: {optimizer!r}.")
    _check_reduction(reduction)
    if updates is not None:
        if not isinstance(updates, Mapping):
            raise TypeError(
                f"updates must be a dict of collections such as {{'batch_stats': ...}}, given: {updates!r}."
            )
        if "params" in updates:
            raise ValueError("updates may not hold 'params': the optimizer writes them. Use after= to change them.")
        updates = dict(updates)
    if after is not None and not callable(after):
        raise TypeError(f"after must be a function of the updated variables, given: {after!r}.")
    if of is not None and not callable(of):
        of = (of,) if isinstance(of, str) else tuple(of)
    return TrainOp(optimizer, loss, grads, of, reduction, updates, after)


def _check_reduction(reduction: Any) -> None:
    if reduction not in ("mean", "sum", None):
        raise ValueError(f"Argument `reduction` should be one of 'mean', 'sum' or None, given: {reduction!r}.")


def is_optimizer(value: Any) -> bool:
    """Whether `value` is an optax transformation (by its two functions)."""
    return callable(getattr(value, "init", None)) and callable(getattr(value, "update", None))


def as_train_ops(train_op: Any) -> tuple[TrainOp, ...]:
    """A spec's `train_op` as TrainOps in order: one, a sequence of them, or a bare optax transformation."""
    if isinstance(train_op, TrainOp):
        return (train_op,)
    if is_optimizer(train_op):
        return (minimize(train_op),)
    if isinstance(train_op, Sequence) and not isinstance(train_op, str) and train_op:
        return tuple(op for element in train_op for op in as_train_ops(element))
    if is_array(train_op):
        given = "an array; train_op is no longer something to run"
    else:
        given = repr(train_op)
    raise TypeError(
        "train_op must be a TrainOp, a sequence of them or an optax.GradientTransformation, given: "
        f"{given}. Write train_op=jaxspec.minimize(optax.adam(1e-3)); for gradients of your own "
        "train_op=jaxspec.apply_gradients(optax.adam(1e-3), grads)."
    )


class CrossShardOptimizer(NamedTuple):
    """TPUEstimator's spelling of `minimize(optimizer, reduction=...)`.

    `CrossShardOptimizer(optax.adam(1e-3))` may stand wherever an optimizer may, as `train_op` too. It works with
    any number of shards, one included.
    """

    optimizer: optax.GradientTransformation
    reduction: Reduction = "mean"

    # `minimize` takes the optimizer out of this: these two are called where it stands inside another transformation.

    def init(self, params: Any) -> Any:
        """The optimizer's own.

        Raises:
          ValueError: if this asks for another reduction than "mean", which could have no effect here.
        """
        self._check_inside()
        return self.optimizer.init(params)

    def update(self, updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        """The optimizer's own: the gradients are averaged over shards already. Raises as `init`."""
        self._check_inside()
        return optax.with_extra_args_support(self.optimizer).update(updates, state, params, **extra_args)

    def _check_inside(self) -> None:
        if self.reduction != "mean":
            raise ValueError(
                f"CrossShardOptimizer(..., {self.reduction!r}) stands inside another transformation (optax.chain, "
                "MultiSteps, ...), which is given gradients that are averaged over shards already. Wrap the whole: "
                f"CrossShardOptimizer(optax.chain(..., optimizer), {self.reduction!r}), or write "
                f"minimize(optax.chain(..., optimizer), reduction={self.reduction!r})."
            )

    @explain_removed_arguments
    def minimize(self, loss: Callable[[Any], Any] | None = None, **kwargs: Any) -> TrainOp:
        """`jaxspec.minimize(self, loss, ...)`."""
        return minimize(self, loss, **kwargs)

    @explain_removed_arguments
    def apply_gradients(self, grads: Any, **kwargs: Any) -> TrainOp:
        """`jaxspec.apply_gradients(self, grads, ...)`."""
        return apply_gradients(self, grads, **kwargs)
