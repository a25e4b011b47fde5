"""Gathered specs out: one host spec for each step, its host functions called in step order."""

from collections.abc import Iterator

import jax
import numpy as np

from .host_function import HostCallHook
from .replicate import concatenate_shards
from .spec import EstimatorSpec, ModeKeys, TPUEstimatorSpec, replaced


def steps_of(spec: TPUEstimatorSpec, start: int, stop: int) -> Iterator[TPUEstimatorSpec]:
    """The host specs of steps `start` to `stop - 1` of a fetched `Loop` output, each of the whole batch.

    Args:
      spec: NumPy leaves: the loss `[capacity]`, others `[capacity, shards, ...]`.
    """
    # Taken apart once: a spec is a pytree with Python code in it, too slow to be one at each step.
    pairs = {name: pair for name in ("eval_metrics", "host_call") if (pair := getattr(spec, name)) is not None}
    leaves, structure = jax.tree.flatten((spec.predictions, {name: tensors for name, (_, tensors) in pairs.items()}))
    for i in range(start, stop):
        predictions, tensors = jax.tree.unflatten(structure, [concatenate_shards(leaf[i]) for leaf in leaves])
        yield replaced(
            spec,
            predictions=predictions,
            loss=None if spec.loss is None else spec.loss[i],
            **{name: (fn, tensors[name]) for name, (fn, _) in pairs.items()},
        )


def join_shards(
    spec: TPUEstimatorSpec, shards: int, rows: int, rest: TPUEstimatorSpec, rest_rows: int
) -> TPUEstimatorSpec:
    """One host spec of the first `shards` shards of `spec` (`rows` rows in all) and those of `rest` behind them.

    Args:
      spec, rest: fetched `Loop` outputs of one step: leaves `[1 or more, shards, ...]`, of which the first is used.
    """
    if not shards:
        return next(steps_of(rest, 0, 1))
    first = next(steps_of(jax.tree.map(lambda x: x if x.ndim == 1 else x[:, :shards], spec), 0, 1))
    if not rest_rows:
        return first
    last = next(steps_of(rest, 0, 1))
    leaves, structure = jax.tree.flatten(replaced(first, loss=None))
    more = jax.tree.leaves(replaced(last, loss=None))
    joined: TPUEstimatorSpec = jax.tree.unflatten(
        structure, [np.concatenate(pair) for pair in zip(leaves, more, strict=True)]
    )
    if first.loss is None:
        return joined
    return replaced(joined, loss=(first.loss * rows + last.loss * rest_rows) / (rows + rest_rows))


def on_host(spec: TPUEstimatorSpec) -> EstimatorSpec:
    """The EstimatorSpec of one step's host spec. scaffold_fn is not called: it belongs to the start of a session."""
    return replaced(spec, scaffold_fn=None).as_estimator_spec()


def run_host_call(spec: EstimatorSpec) -> None:
    """Runs the host_call of a step, if its spec has one."""
    hooks = spec.training_hooks if spec.mode == ModeKeys.TRAIN else spec.evaluation_hooks
    for hook in hooks:
        if isinstance(hook, HostCallHook):
            hook.run()
