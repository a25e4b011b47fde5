"""What a training step does to the variables: `train_op` of a spec."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, TypeAlias, TypedDict, TypeGuard, Unpack

import jax
import optax

from jaxspec._src.base.arrays import is_array
from jaxspec._src.base.removed_arguments import CALLS, handle_removed_arguments
from jaxspec._src.base.types import AnyFunction, Array, PyTree, Variables
from jaxspec._src.base.validate import check_callable
from jaxspec._src.spec.mode import Mode, ModeKeys


class Optimizer(Protocol):
    """The two functions of an `optax.GradientTransformation`."""

    @property
    def init(self) -> AnyFunction: ...
    @property
    def update(self) -> AnyFunction: ...


LossFn: TypeAlias = Callable[..., Array | tuple[Array, Variables]]
"""`variables -> scalar`, or `variables -> (scalar, updates)`."""
After: TypeAlias = Callable[..., Variables]
"""`updated variables -> collections`."""
Selection: TypeAlias = tuple[str, ...] | Callable[[str], bool] | None
"""Keys of `variables["params"]`, or a predicate on the path inside it, or None for all parameters."""
SelectionLike: TypeAlias = str | Iterable[str] | Callable[[str], bool] | None
"""What a user writes for a `Selection`: one key, several keys, a predicate, or None."""
Reduction: TypeAlias = Literal["mean", "sum"] | None


@dataclasses.dataclass(frozen=True, eq=False)
class TrainOp:
    """One update of the variables. Made by `minimize` or `apply_gradients`; a pytree of `grads` and `updates`."""

    optimizer: Optimizer
    loss: LossFn | None
    grads: PyTree
    of: Selection
    reduction: Reduction
    updates: Variables | None
    after: After | None


jax.tree_util.register_dataclass(
    TrainOp, data_fields=["grads", "updates"], meta_fields=["optimizer", "loss", "of", "reduction", "after"]
)

TrainOpLike: TypeAlias = TrainOp | Optimizer | Sequence[TrainOp | Optimizer]
"""What a user writes for `train_op`: a bare optimizer means `minimize(optimizer)`."""


@handle_removed_arguments
def minimize(
    optimizer: Optimizer,
    loss: LossFn | None = None,
    *,
    of: SelectionLike = None,
    reduction: Reduction = "mean",
    updates: Variables | None = None,
    after: After | None = None,
) -> TrainOp:
    """Differentiates a loss and lets `optimizer` update the parameters.

    Args:
      optimizer: an `optax.GradientTransformation`, or a `CrossShardOptimizer` around one. May be made inside
        model_fn, from `step` too: `optax.adam(schedule(step))`.
      loss: a pure function `variables -> scalar` or `variables -> (scalar, updates)` on this shard's batch. None: the
        spec's own `loss` is differentiated.
      of: what is trained: a key of `variables["params"]`, several keys, or a predicate on the path, such as
        `lambda path: path.startswith("Dense_0/")`; the path is that inside params. None: all of them.
      reduction: how gradients are reduced over shards before the optimizer sees them: "mean", "sum", or None
        when they are the same on every shard already (then those of shard 0 are used).
      updates: the new values of non-trainable collections, e.g. `{"batch_stats": ...}`. Floating leaves are
        averaged over shards, others take the value of shard 0.
      after: a pure function of the updated variables that returns new values of collections: moving averages,
        clipped weights, target networks. They are reduced over shards like `updates`.

    Raises:
      TypeError, ValueError: for an argument that is none of these.
    """
    if loss is not None:
        instead = "Write a function of the variables, or leave it out to differentiate the spec's own loss."
        check_callable("minimize: loss", loss, instead)
    return _checked(TrainOp(optimizer, loss, None, _selection(of), reduction, updates, after))


@handle_removed_arguments
def apply_gradients(
    optimizer: Optimizer,
    grads: PyTree,
    *,
    of: SelectionLike = None,
    reduction: Reduction = "mean",
    updates: Variables | None = None,
    after: After | None = None,
) -> TrainOp:
    """Lets `optimizer` apply gradients that model_fn has computed itself.

    Args:
      optimizer: as in `minimize`.
      grads: this shard's gradients: the tree of `variables["params"]`, or, with `of` naming keys, a dict of
        those keys.
      of, reduction, updates, after: as in `minimize`.

    Raises:
      TypeError, ValueError: for an argument that is none of these.
    """
    if isinstance(grads, Iterator):
        raise TypeError(
            "apply_gradients: grads must be the tree of gradients, as jax.grad returns it, got "
            f"{type(grads).__name__}. {CALLS['apply_gradients']}"
        )
    if grads is None:
        raise ValueError("apply_gradients: grads is None; pass the gradients, or use minimize(optimizer).")
    return _checked(TrainOp(optimizer, None, grads, _selection(of), reduction, updates, after))


def _selection(of: SelectionLike) -> Selection:
    if isinstance(of, str):
        return (of,)
    return of if of is None or callable(of) else tuple(of)


def _checked(op: TrainOp) -> TrainOp:
    optimizer, reduction, updates = op.optimizer, op.reduction, op.updates
    if isinstance(optimizer, CrossShardOptimizer):  # the outermost one counts
        optimizer, reduction = optimizer
    if not is_optimizer(optimizer):
        raise TypeError(f"optimizer must be an optax.GradientTransformation, given: {optimizer!r}.")
    if reduction not in ("mean", "sum", None):
        raise ValueError(f"Argument `reduction` should be one of 'mean', 'sum' or None, given: {reduction!r}.")
    if updates is not None:
        if not isinstance(updates, Mapping):
            raise TypeError(
                f"updates must be a dict of collections such as {{'batch_stats': ...}}, given: {updates!r}."
            )
        if "params" in updates:
            raise ValueError("updates may not hold 'params': the optimizer writes them. Use after= to change them.")
        updates = dict(updates)
    if op.after is not None:
        check_callable("after", op.after, "Write a function of the updated variables that returns collections.")
    return dataclasses.replace(op, optimizer=optimizer, reduction=reduction, updates=updates)


def is_optimizer(value: object) -> TypeGuard[Optimizer]:
    """Whether `value` has the two functions of an optax transformation."""
    return callable(getattr(value, "init", None)) and callable(getattr(value, "update", None))


def check_train_op(mode: Mode, train_op: TrainOpLike | None) -> TrainOp | tuple[TrainOp, ...] | None:
    """A spec's `train_op` as one TrainOp, or several. ValueError if it is missing in TRAIN; TypeError for anything
    else."""
    if train_op is None:
        if mode == ModeKeys.TRAIN:
            raise ValueError("Missing train_op. In mode TRAIN write train_op=jaxspec.minimize(optax.adam(1e-3)).")
        return None
    ops = as_train_ops(train_op)
    return ops[0] if len(ops) == 1 else ops


def as_train_ops(train_op: object) -> tuple[TrainOp, ...]:
    """A spec's `train_op` as TrainOps in order: one, a sequence of them, or a bare optax transformation."""
    if isinstance(train_op, TrainOp):
        return (train_op,)
    if is_optimizer(train_op):
        return (minimize(train_op),)
    if isinstance(train_op, Sequence) and not isinstance(train_op, str) and train_op:
        return tuple(op for element in train_op for op in as_train_ops(element))
    given = "an array; train_op is no longer something to run" if is_array(train_op) else repr(train_op)
    raise TypeError(
        "train_op must be a TrainOp, a sequence of them or an optax.GradientTransformation, given: "
        f"{given}. Write train_op=jaxspec.minimize(optax.adam(1e-3)); for gradients of your own "
        "train_op=jaxspec.apply_gradients(optax.adam(1e-3), grads)."
    )


class Options(TypedDict, total=False):
    """The keyword arguments of `minimize` and `apply_gradients`."""

    of: SelectionLike
    reduction: Reduction
    updates: Variables | None
    after: After | None


class CrossShardOptimizer(NamedTuple):
    """TPUEstimator's spelling of `minimize(optimizer, reduction=...)`.

    `CrossShardOptimizer(optax.adam(1e-3))` may be used wherever an optimizer may, as `train_op` too. It works with
    any number of shards, one included.
    """

    optimizer: Optimizer
    reduction: Reduction = "mean"

    # `minimize` takes the optimizer out of this: the next two are called only inside another transformation.

    def init(self, params: PyTree) -> PyTree:
        """The state that the optimizer's own `init` returns.

        Raises:
          ValueError: for another reduction than "mean", which could have no effect here.
        """
        self._check_inside()
        return self.optimizer.init(params)

    def update(self, updates: PyTree, state: PyTree, params: PyTree = None, **extra_args: PyTree) -> PyTree:
        """Calls the optimizer's own `update`: the gradients are averaged over shards already. Raises as `init`."""
        self._check_inside()
        return optax.with_extra_args_support(self.optimizer).update(updates, state, params, **extra_args)

    def _check_inside(self) -> None:
        if self.reduction != "mean":
            raise ValueError(
                f"CrossShardOptimizer(..., {self.reduction!r}) is inside another transformation (optax.chain, "
                "MultiSteps, ...), which is passed gradients that are averaged over shards already. Wrap the whole: "
                f"CrossShardOptimizer(optax.chain(..., optimizer), {self.reduction!r}), or write "
                f"minimize(optax.chain(..., optimizer), reduction={self.reduction!r})."
            )

    @handle_removed_arguments
    def minimize(self, loss: LossFn | None = None, **options: Unpack[Options]) -> TrainOp:
        """`jaxspec.minimize(self, loss, ...)`."""
        return minimize(self, loss, **options)

    @handle_removed_arguments
    def apply_gradients(self, grads: PyTree, **options: Unpack[Options]) -> TrainOp:
        """`jaxspec.apply_gradients(self, grads, ...)`."""
        return apply_gradients(self, grads, **options)
