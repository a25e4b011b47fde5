"""Gathered specs out: one host spec for each step, its host functions called in step order."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxspec._src.device.replicate import concatenate_shards
from jaxspec._src.metrics.shard_scalars import ShardScalars
from jaxspec._src.spec.host_functions import HostCallHook
from jaxspec._src.spec.spec import EstimatorSpec, ModeKeys, TPUEstimatorSpec, replaced


def steps_of(
    spec: TPUEstimatorSpec, start: int, stop: int, rows_per_shard: int | None = None
) -> Iterator[TPUEstimatorSpec]:
    """The host specs of steps `start` to `stop - 1` of a fetched `Loop` output, each of the whole batch.

    Args:
      spec: NumPy leaves: the loss `[capacity, ...]`, others `[capacity, shards, ...]`.
      rows_per_shard: given where batches differ in size: in evaluation the scalars of each shard carry it.
    """
    # Taken apart once: a spec is a pytree with Python code in it, too slow to be one at each step.
    pairs = {name: pair for name in ("eval_metrics", "host_call") if (pair := getattr(spec, name)) is not None}
    leaves, structure = jax.tree.flatten((spec.predictions, {name: tensors for name, (_, tensors) in pairs.items()}))
    counted = rows_per_shard is not None and spec.mode == ModeKeys.EVAL
    scalars = [k for k, leaf in enumerate(leaves) if leaf.ndim == 2] if counted else []
    for i in range(start, stop):
        arrays = [concatenate_shards(leaf[i]) for leaf in leaves]
        for k in scalars:
            arrays[k] = ShardScalars(arrays[k], np.full(len(arrays[k]), rows_per_shard))
        predictions, tensors = jax.tree.unflatten(structure, arrays)
        yield replaced(
            spec,
            predictions=predictions,
            loss=None if spec.loss is None else spec.loss[i],
            **{name: (fn, tensors[name]) for name, (fn, _) in pairs.items()},
        )


def joined(specs: Sequence[TPUEstimatorSpec], loss: Any) -> TPUEstimatorSpec:
    """One host spec, with this loss, of groups of shards that follow one another."""
    first = replaced(specs[0], loss=loss)
    if len(specs) == 1:
        return first
    parts = zip(*(jax.tree.leaves(replaced(spec, loss=loss)) for spec in specs), strict=True)
    leaves = [part[0] if part[0] is loss else np.concatenate(part) for part in parts]
    spec: TPUEstimatorSpec = jax.tree.unflatten(jax.tree.structure(first), leaves)
    return spec


def on_host(spec: TPUEstimatorSpec) -> EstimatorSpec:
    """The EstimatorSpec of one step's host spec. scaffold_fn is not called: it belongs to the start of a session."""
    return replaced(spec, scaffold_fn=None).as_estimator_spec()


def run_host_call(spec: EstimatorSpec) -> None:
    """Runs the host_call of a step, if its spec has one."""
    hooks = spec.training_hooks if spec.mode == ModeKeys.TRAIN else spec.evaluation_hooks
    for hook in hooks:
        if isinstance(hook, HostCallHook):
            hook.run()
