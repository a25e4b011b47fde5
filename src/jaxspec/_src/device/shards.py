"""Everything that reshapes over shards. The layouts of a leaf:

    a batch                [rows, ...]
    a sharded batch        [shards, rows per shard, ...]
    a stack of batches     [capacity, shards, rows per shard, ...]
    outputs of a dispatch  [room, shards, ...]; the loss [room, ...]

The rows of a batch keep their order: shard 0 holds the first. All of it is NumPy, on the host.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import jax
import numpy as np

from jaxspec._src.base.arrays import describe_array, named_leaves
from jaxspec._src.base.types import Array, Batch
from jaxspec._src.metrics.shard_scalars import ShardScalars
from jaxspec._src.spec.mode import ModeKeys
from jaxspec._src.spec.tpu_estimator_spec import TPUEstimatorSpec, WholeBatchSpec, replaced
from jaxspec._src.step.axis import SHARD_AXIS

Tree = TypeVar("Tree")


def first_shard(state: Tree) -> Tree:
    """The copy of a broadcast state on its first device. Nothing is copied: it is gone once the state is donated."""
    first: Tree = jax.tree.map(lambda x: x.addressable_shards[0].data, state)
    return first


# Batches to shards.


def shard(batch: Tree, num_shards: int) -> Tree:
    """A host batch of `[batch, ...]` leaves as `[num_shards, batch / num_shards, ...]`, in order, without a copy.

    Raises:
      ValueError: if the leading size of a leaf is no positive multiple of `num_shards`; names the leaf.
    """

    def one(path: tuple[object, ...], x: np.ndarray) -> np.ndarray:
        size = np.shape(x)[0] if np.ndim(x) else 0
        if not size or size % num_shards:
            name = jax.tree_util.keystr(path)
            raise ValueError(
                f"shard: leaf {name or 'batch'} is {describe_array(x)}; its leading size must be a positive multiple "
                f"of the number of shards, {num_shards}."
            )
        return x.reshape(num_shards, size // num_shards, *np.shape(x)[1:])

    sharded: Tree = jax.tree_util.tree_map_with_path(one, batch)
    return sharded


def stack_of_one(batch: Batch, num_shards: int = 1) -> Batch:
    """A batch as the only one of a stack, `[1, num_shards, rows / num_shards, ...]`, without a copy."""
    return jax.tree.map(lambda x: x[None], shard(batch, num_shards))


class RowsOfArrays(NamedTuple):
    """A stack that is not gathered yet."""

    rows: Array
    """Which examples, int32 `[capacity, shards, rows per shard]`."""
    arrays: Batch
    """(features, labels): all examples, `[1, shards, examples, ...]`, the same on each shard."""


def capacity_of(stack: Batch) -> int:
    """How many batches a stack has room for."""
    return int(jax.tree.leaves(stack)[0].shape[0])


def places_in_stack(first_batch: int, first_shard: int, capacity: int, num_shards: int) -> np.ndarray:
    """The `place` argument of an inference step for a whole stack, int32 `[capacity, num_shards, 2]`.

    Args:
      first_batch: the number of the first batch of the stack, counted from 0 in its run. The others follow.
      first_shard: how many shards of the same batch come before those of the stack.
    """
    places = np.empty((capacity, num_shards, 2), np.int32)
    places[..., 0] = first_batch + np.arange(capacity)[:, None]
    places[..., 1] = first_shard
    return places


# Shards to batches.


def gather(spec: TPUEstimatorSpec) -> TPUEstimatorSpec:
    """The spec of the whole batch, on the host, from one with a leading axis of shards.

    Arrays are fetched with `jax.device_get`; those of the shards are concatenated along axis 0 in shard order, a
    scalar becomes one entry for each shard. The loss stays a scalar.

    Args:
      spec: from `replicate`, or from a `pmap`, `vmap` or `shard_map` of your own over `SHARD_AXIS`, each leaf but the
        loss `[shards, ...]`.

    Raises:
      ValueError: if the step was not mapped over shards, or the mapping has concatenated the shards already.
    """
    if isinstance(spec, WholeBatchSpec):
        raise ValueError(
            "gather: expected a spec with a leading axis of shards, got that of a step that was not mapped over the "
            f"axis {SHARD_AXIS!r}: it is the spec of its whole batch. Write jax.device_get(spec) instead of "
            "gather(spec), or map the step: js.replicate(step)."
        )
    for name, leaf in named_leaves(replaced(spec, loss=None)).items():
        _check_has_axis_of_shards(name, leaf)
    host: TPUEstimatorSpec = jax.device_get(spec)
    loss = host.loss if host.loss is None or not np.ndim(host.loss) else np.mean(host.loss)
    return replaced(jax.tree.map(concatenate_shards, replaced(host, loss=None)), loss=loss)


def _check_has_axis_of_shards(name: str, leaf: Array) -> None:
    sharding = getattr(leaf, "sharding", None)
    if not isinstance(sharding, jax.sharding.NamedSharding) or SHARD_AXIS not in sharding.mesh.shape:
        return
    shards = sharding.mesh.shape[SHARD_AXIS]
    # With one shard, JAX does not record which axis it is.
    if (shards == 1 or sharding.spec[:1] == (SHARD_AXIS,)) and leaf.shape[:1] != (shards,):
        raise ValueError(
            f"gather: leaf {name} is {describe_array(leaf)}, but its leading axis must be that of the {shards} shards. "
            "The mapping has concatenated the shards already: write jax.device_get(spec), or give each leaf but the "
            "loss an axis of shards inside the mapped function: x[None]."
        )


def concatenate_shards(x: np.ndarray) -> np.ndarray:
    """`[shards, size, ...]` as `[shards * size, ...]`; `[shards]` and a scalar as they are."""
    return x if x.ndim <= 1 else x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def start_fetch(spec: TPUEstimatorSpec, devices: Sequence[jax.Device]) -> None:
    """Has the outputs of a dispatch copied to the host as soon as they are computed, for a later `jax.device_get`.

    Args:
      spec: the outputs that will be fetched.
      devices: where they are. Memory of a CPU device is the host's, so there is nothing to do.
    """
    if devices[0].platform == "cpu":
        return
    with jax.transfer_guard_device_to_host("allow"):  # like `jax.device_get`, it is no hidden transfer
        for leaf in jax.tree.leaves(spec):
            if isinstance(leaf, jax.Array):  # under `jax.disable_jit` they are on the host
                leaf.copy_to_host_async()


def fetch(spec: TPUEstimatorSpec) -> TPUEstimatorSpec:
    """The outputs of a dispatch on the host: `jax.device_get`, which would run the Python code of a spec twice."""
    leaves, structure = jax.tree.flatten(spec)
    host: TPUEstimatorSpec = jax.tree.unflatten(structure, jax.device_get(leaves))
    return host


def fetch_step(leaf: Array, *, index: int) -> np.ndarray:
    """One step of an output of a dispatch, fetched to the host, its shards concatenated."""
    return concatenate_shards(jax.device_get(leaf)[index])


def specs_of_steps(spec: TPUEstimatorSpec, count: int, rows_per_shard: int | None = None) -> Iterator[TPUEstimatorSpec]:
    """The specs of the `count` steps of a dispatch, each of its whole batch.

    Args:
      spec: the outputs of the dispatch, on the host.
      rows_per_shard: given where batches differ in size: in evaluation each scalar of a shard carries it.
    """
    # Flattened once: a spec runs Python code when it is flattened, which is too slow for each step.
    pairs = {name: pair for name in ("eval_metrics", "host_call") if (pair := getattr(spec, name)) is not None}
    leaves, structure = jax.tree.flatten((spec.predictions, {name: tensors for name, (_, tensors) in pairs.items()}))
    counted = rows_per_shard is not None and spec.mode == ModeKeys.EVAL
    scalars = [k for k, leaf in enumerate(leaves) if leaf.ndim == 2] if counted else []
    for i in range(count):
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


def outputs_of_steps(specs: Sequence[TPUEstimatorSpec], room: int) -> TPUEstimatorSpec:
    """The opposite of `specs_of_steps`, for one shard: host specs of steps as the outputs of a dispatch.

    Entries beyond them are zeros.
    """

    def stacked(*values: np.ndarray) -> np.ndarray:
        stack = np.zeros((room, *values[0].shape), values[0].dtype)
        stack[: len(values)] = values
        return stack

    # Specs of two calls differ in their functions, and so in their treedefs: only their leaves can be put together.
    rest = [replaced(spec, loss=None) for spec in specs]
    leaves = [stacked(*values)[:, None] for values in zip(*map(jax.tree.leaves, rest), strict=True)]
    loss = None if specs[0].loss is None else stacked(*(np.asarray(spec.loss) for spec in specs))
    return replaced(jax.tree.unflatten(jax.tree.structure(rest[-1]), leaves), loss=loss)


def join_groups(specs: Sequence[TPUEstimatorSpec], loss: np.generic | None) -> TPUEstimatorSpec:
    """The host spec of a batch, with this loss, from those of the groups of shards that it ran in, in order."""
    first = replaced(specs[0], loss=loss)
    if len(specs) == 1:
        return first
    parts = zip(*(jax.tree.leaves(replaced(spec, loss=loss)) for spec in specs), strict=True)
    leaves = [part[0] if part[0] is loss else np.concatenate(part) for part in parts]
    spec: TPUEstimatorSpec = jax.tree.unflatten(jax.tree.structure(first), leaves)
    return spec
