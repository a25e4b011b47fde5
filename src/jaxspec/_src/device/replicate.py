"""replicate: a step mapped over devices, for a training loop that you write yourself."""

import collections
import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import numpy as np

from jaxspec._src.base.arrays import describe_array, named_leaves
from jaxspec._src.base.types import PyTree
from jaxspec._src.device.mapping import all_devices, broadcast, local_devices_of, map_over_devices
from jaxspec._src.device.program import MAX_IN_FLIGHT
from jaxspec._src.spec.tpu_estimator_spec import TPUEstimatorSpec, replaced

Result = TypeVar("Result", bound=TPUEstimatorSpec | tuple[object, TPUEstimatorSpec])


def replicate(
    step: Callable[..., Result], devices: Sequence[jax.Device] | None = None, *, donate_state: bool = False
) -> Callable[..., Result]:
    """A step function mapped over devices, for a training loop that you write yourself.

        train_step = replicate(make_train_step(model_fn))
        state, spec = train_step(state, *shard((features, labels), jax.local_device_count()))
        print(gather(spec).loss)

    With several processes (`jax.distributed`), each calls it with its own part of the batch, and gets the spec of the
    whole batch. The state must be the same in all of them.

    Args:
      step: what `make_train_step`, `make_eval_step` or `make_predict_step` returned.
      devices: None means all, of all processes.
      donate_state: the state passed in is gone after the call. Saves its memory, in training loops.

    Returns:
      A function of a state without a device axis and of batches `[local shards, per-shard batch, ...]`. It returns what
      `step` returns: the state without a device axis, the spec with a leading axis of shards on every leaf but the
      loss, which is averaged. It waits when several calls are unfinished, so a loop need not.

    Raises:
      ValueError: by the function, if the leading size of a batch is not the number of local devices; names the leaf.
    """
    devices = all_devices() if devices is None else tuple(devices)

    def mapped(state: PyTree, *batch: PyTree) -> tuple[PyTree, PyTree, TPUEstimatorSpec]:
        out = step(state, *batch)
        new_state, spec = (None, out) if isinstance(out, TPUEstimatorSpec) else out
        return new_state, spec.loss, replaced(spec, loss=None)

    @functools.cache
    def program(arguments: int) -> Callable[..., tuple[PyTree, PyTree, TPUEstimatorSpec]]:
        in_axes = (None, *[0] * arguments)
        donate = (0,) if donate_state else ()
        return map_over_devices(mapped, devices, in_axes=in_axes, out_axes=(None, None, 0), donate_argnums=donate)

    in_flight: collections.deque[list[jax.Array]] = collections.deque()

    def replicated(state: PyTree, *batch: PyTree) -> Result:
        _check_sharded(batch, len(local_devices_of(devices)))
        sharding = next((x.sharding for x in jax.tree.leaves(state) if isinstance(x, jax.Array)), None)
        if not isinstance(sharding, jax.sharding.NamedSharding) or tuple(sharding.mesh.devices.flat) != devices:
            # As a mapped program would return it: otherwise the second call would compile another program.
            state = broadcast(state, devices)
        new_state, loss, spec = program(len(batch))(state, *batch)
        spec = replaced(spec, loss=loss)
        in_flight.append(jax.tree.leaves(spec))
        if len(in_flight) > MAX_IN_FLIGHT:
            jax.block_until_ready(in_flight.popleft())
        out: PyTree = spec if new_state is None else (new_state, spec)
        result: Result = out
        return result

    return replicated


def _check_sharded(batch: tuple[PyTree, ...], num_shards: int) -> None:
    here = " of this process" if jax.process_count() > 1 else ""
    for name, leaf in named_leaves(batch).items():
        if np.shape(leaf)[:1] != (num_shards,):
            raise ValueError(
                f"batch leaf {name} is {describe_array(leaf)}, but the step is mapped over {num_shards} devices{here}: "
                f"its leading axis must be {num_shards}. Write step(state, *shard((features, labels), {num_shards}))."
            )
