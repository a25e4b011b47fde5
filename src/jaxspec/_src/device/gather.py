"""Everything that reshapes over shards: a batch taken apart, a spec put together."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.extend
import numpy as np

from jaxspec._src.base.arrays import describe_array, named_leaves
from jaxspec._src.metrics.shard_scalars import ShardScalars
from jaxspec._src.spec.mode import ModeKeys
from jaxspec._src.spec.tpu_estimator_spec import TPUEstimatorSpec, WholeBatchSpec, replaced
from jaxspec._src.step.axis import SHARD_AXIS


def first_shard(state: Any) -> Any:
    """The copy of a broadcast state that the first device holds; nothing is copied. Dead once the state is donated."""
    return jax.tree.map(lambda x: x.addressable_shards[0].data, state)


def shard(batch: Any, num_shards: int) -> Any:
    """A host batch of `[batch, ...]` leaves as `[num_shards, batch / num_shards, ...]`, in order, without a copy."""

    def one(path: Any, x: Any) -> Any:
        size = np.shape(x)[0] if np.ndim(x) else 0
        if not size or size % num_shards:
            name = jax.tree_util.keystr(path)
            raise ValueError(
                f"shard: leaf {name or 'batch'} is {describe_array(x)}; its leading size must be a positive multiple of "
                f"the number of shards, {num_shards}."
            )
        return x.reshape(num_shards, size // num_shards, *np.shape(x)[1:])

    return jax.tree_util.tree_map_with_path(one, batch)


def gather(spec: TPUEstimatorSpec) -> TPUEstimatorSpec:
    """The spec of the whole batch, on the host, from one with a leading axis of shards.

    Arrays are fetched with `jax.device_get`; those of the shards are concatenated along axis 0 in shard order, a
    scalar becomes one entry for each shard. The loss stays a scalar.

    Args:
      spec: from `replicate`, or from a `pmap`, `vmap` or `shard_map` of your own over `SHARD_AXIS`, each leaf but the loss
        `[shards, ...]`.

    Raises:
      ValueError: if the step was not mapped over shards, or the mapping has concatenated the shards already.
    """
    if isinstance(spec, WholeBatchSpec):
        raise ValueError(
            "gather: expected a spec with a leading axis of shards, got that of a step that was not mapped over the axis "
            f"{SHARD_AXIS!r}: it is the spec of its whole batch. Write jax.device_get(spec) instead of gather(spec), or map "
            "the step: js.replicate(step)."
        )
    for name, leaf in named_leaves(replaced(spec, loss=None)).items():
        _check_has_axis_of_shards(name, leaf)
    host: TPUEstimatorSpec = jax.device_get(spec)
    loss = host.loss if host.loss is None or not np.ndim(host.loss) else np.mean(host.loss)
    return replaced(jax.tree.map(concatenate_shards, replaced(host, loss=None)), loss=loss)


def _check_has_axis_of_shards(name: str, leaf: Any) -> None:
    sharding = getattr(leaf, "sharding", None)
    if not isinstance(sharding, jax.sharding.NamedSharding) or SHARD_AXIS not in sharding.mesh.shape:
        return
    shards = sharding.mesh.shape[SHARD_AXIS]
    # Of one shard JAX does not say which axis it is.
    if (shards == 1 or sharding.spec[:1] == (SHARD_AXIS,)) and leaf.shape[:1] != (shards,):
        raise ValueError(
            f"gather: leaf {name} is {describe_array(leaf)}, but its leading axis must be that of the {shards} shards. The "
            "mapping has concatenated the shards already: write jax.device_get(spec), or give each leaf but the loss an "
            "axis of shards inside the mapped function: x[None]."
        )


def concatenate_shards(x: np.ndarray) -> np.ndarray:
    """`[shards, size, ...]` as `[shards * size, ...]`; `[shards]` and a scalar as they are."""
    return x if x.ndim <= 1 else x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def steps_of(
    spec: TPUEstimatorSpec, start: int, stop: int, rows_per_shard: int | None = None
) -> Iterator[TPUEstimatorSpec]:
    """The host specs of steps `start` to `stop - 1` of a fetched `Program` output, each of the whole batch.

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
