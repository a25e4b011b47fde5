"""A step compiled with a loop around it: one call, a *dispatch*, runs it on any number of the batches of a stack.

The thread that called the verb dispatches. It sees to it that no more than `MAX_IN_FLIGHT` dispatches are unfinished.
A training program donates the state: its old buffers are gone after the call.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from jaxspec._src.base.activities import doing
from jaxspec._src.base.types import Array, PyTree
from jaxspec._src.device.mapping import broadcast, local_devices_of, map_over_devices, stack_of_parts
from jaxspec._src.device.peak_flops import peak_flops_per_sec
from jaxspec._src.device.shards import RowsOfArrays, capacity_of, outputs_of_steps
from jaxspec._src.spec.tpu_estimator_spec import TPUEstimatorSpec, replaced
from jaxspec._src.step.flops import count_flops
from jaxspec._src.step.jaxprs import debugging
from jaxspec._src.step.state import TrainState

Stacks: TypeAlias = tuple[PyTree, ...] | RowsOfArrays
"""The arguments of a step after the state, each a tree of leaves `[capacity, shards, per-shard batch, ...]`."""
MAX_IN_FLIGHT = 2
"""Dispatches that may be unfinished. CPU devices deadlock when many collectives wait; two keep any device busy."""


class Program:
    """A step that runs any number of times a dispatch on every device; compiled once, whatever the number.

    Args:
      step: for one shard: `(state, *batch) -> (state, spec)` if `trains`, else `(state, *batch) -> spec`.
      devices: the devices that the step is mapped over.
      trains: whether the step makes a new state. The state passed in is donated then.
      single_step: whether a dispatch makes one step. The program has no loop inside then.
      most_steps: the most steps of a dispatch; None: the capacity of the stack. The program has room for the outputs of
        so many.
    """

    def __init__(
        self,
        step: Callable[..., tuple[TrainState, TPUEstimatorSpec]] | Callable[..., TPUEstimatorSpec],
        devices: Sequence[jax.Device],
        *,
        trains: bool,
        single_step: bool = False,
        most_steps: int | None = None,
    ) -> None:
        self.devices = tuple(devices)
        self.trains = trains
        self.single_step = single_step
        self.most_steps = 1 if single_step else most_steps
        self._flops: int | None = None
        # jit caches the trace: the shapes of the outputs and the body of the loop come from one run of the Python code.
        self._step = jax.jit(step if trains else lambda state, *batch: (None, step(state, *batch)))
        self._starts_made: dict[int, jax.Array] = {}
        self._counts_made: dict[int, jax.Array] = {}
        self._program = map_over_devices(
            self._run,
            self.devices,
            in_axes=(None, 1, 1, None),
            out_axes=(None, None, 1),
            donate_argnums=(0,) if trains else (),
        )

    def __call__(
        self, state: TrainState, batches: Stacks, start: int, count: int
    ) -> tuple[TrainState, TPUEstimatorSpec]:
        """Runs the step on `count` batches of a stack, from batch `start` on.

        With several processes each calls it, with the same count and a stack of its own.

        Args:
          state: on the devices, without a device axis. Gone after the call if the step trains.
          batches: of one capacity; on the devices as `StackPlacement` puts them, or NumPy.
          start: which of the `capacity` batches is the first, counted from 0.

        Returns:
          (the new state, or the same one if the step does not train; one spec for all steps). The spec is on the
          devices: its loss is `[room, ...]`, its other leaves `[room, shards, ...]`, over the shards of all
          processes. Its first `count` entries belong to the steps; the others are zeros.
        """
        if debugging() and len(self.devices) == 1:
            return self._run_eagerly(state, batches, start, count)
        compiles = doing("compilation") if self._flops is None else contextlib.nullcontext()
        # The batch has to reach the devices, whatever the caller forbids elsewhere.
        with compiles, jax.transfer_guard_host_to_device("allow"):
            new_state, loss, spec = self._program(state, batches, self._starts(start), self._count(count))
        return state if new_state is None else new_state, replaced(spec, loss=loss)

    def _starts(self, start: int) -> jax.Array:
        """`start` for each shard, on the devices. It is kept: sending a number costs as much as a dispatch."""
        if start not in self._starts_made:
            local = local_devices_of(self.devices)
            parts = [jax.device_put(np.full((1, 1), start, np.int32), device) for device in local]
            self._starts_made[start] = stack_of_parts(parts, self.devices)
        return self._starts_made[start]

    def _count(self, count: int) -> jax.Array:
        if count not in self._counts_made:
            self._counts_made[count] = broadcast(jnp.int32(count), self.devices)
        return self._counts_made[count]

    @property
    def flops_per_step(self) -> float | None:
        """The floating point operations of one step on all devices together, as `count_flops` counts them.

        None before the first dispatch, under `jax.disable_jit()`, and for a step without any.
        """
        return self._flops * len(self.devices) if self._flops else None

    @functools.cached_property
    def peak_flops_per_sec(self) -> float | None:
        """What all devices could do together; None if it is not known."""
        return peak_flops_per_sec(self.devices)

    def _run_eagerly(
        self, state: TrainState, batches: Stacks, start: int, count: int
    ) -> tuple[TrainState, TPUEstimatorSpec]:
        """The steps one after the other on the only shard, with values instead of tracers."""
        specs: list[TPUEstimatorSpec] = []
        for i in range(start, start + count):
            shard = jax.tree.map(lambda x: jnp.asarray(x)[:, 0], batches)
            new_state, spec = self._step(state, *_batch(shard, i))
            state = state if new_state is None else new_state
            specs.append(jax.device_get(jax.tree.map(jnp.asarray, spec)))  # numbers become arrays, as with jit
        return state, outputs_of_steps(specs, self._room(batches))

    def _room(self, batches: Stacks) -> int:
        """For the outputs of how many steps there is room."""
        capacity = capacity_of(batches)
        return capacity if self.most_steps is None else min(capacity, self.most_steps)

    def _run(
        self, state: TrainState, batches: Stacks, starts: Array, count: Array
    ) -> tuple[TrainState | None, PyTree, TPUEstimatorSpec]:
        (start,) = starts
        trace = self._step.trace(state, *_batch(batches, 0))
        self._flops = count_flops(trace.jaxpr.jaxpr)
        if self.single_step:
            new_state, out = self._step(state, *jax.lax.optimization_barrier(_batch(batches, start)))
            spec = jax.tree.map(lambda x: x[None], out)
            return new_state, spec.loss, replaced(spec, loss=None)
        _, out = trace.out_info
        room = self._room(batches)
        buffers = jax.tree.map(lambda x: jnp.zeros((room, *x.shape), x.dtype), jax.tree.leaves(out))

        def body(i: Array, carry: tuple[PyTree, list[Array]]) -> tuple[PyTree, list[Array]]:
            carried, buffers = carry
            # XLA may not see that a stack of one has the same batch each time, nor fuse the step with what takes the
            # batch out of the stack: the step would be rounded in another way than in a larger stack.
            i, batch = jax.lax.optimization_barrier((i, _batch(batches, start + i)))
            new, out = self._step(carried if self.trains else state, *batch)
            outputs = jax.tree.leaves(out)
            buffers = [jax.lax.dynamic_update_index_in_dim(b, x, i, 0) for b, x in zip(buffers, outputs, strict=True)]
            return new, buffers

        # A spec cannot be carried (its functions are new objects at each trace): its leaves are.
        new_state, buffers = jax.lax.fori_loop(0, count, body, (state if self.trains else None, buffers))
        spec = jax.tree.unflatten(jax.tree.structure(out), buffers)
        return new_state, spec.loss, replaced(spec, loss=None)


def _batch(batches: Stacks, i: Array | int) -> PyTree:
    """The arguments of a step after the state, from those of one shard for all steps."""
    if isinstance(batches, RowsOfArrays):
        rows = jax.lax.dynamic_index_in_dim(batches.rows, i, keepdims=False)
        return jax.tree.map(lambda x: x[0].at[rows].get(mode="promise_in_bounds"), batches.arrays)
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), batches)


def prefers_single_steps(jaxpr: jax.extend.core.Jaxpr | None, devices: Sequence[jax.Device]) -> bool:
    """Whether a step with this jaxpr is faster alone than in the body of a loop.

    On a CPU, XLA runs a convolution in the body of a loop several times slower than one outside. Such a step is then a
    program of its own for every number of steps, so that results do not depend on the number. None, an unknown jaxpr,
    is taken for one with a convolution.
    """
    return devices[0].platform == "cpu" and (jaxpr is None or _has_convolution(jaxpr))


def _has_convolution(jaxpr: jax.extend.core.Jaxpr) -> bool:
    return any(
        equation.primitive.name == "conv_general_dilated"
        or any(_has_convolution(inner) for inner in jax.extend.core.jaxprs_in_params(equation.params))
        for equation in jaxpr.eqns
    )
