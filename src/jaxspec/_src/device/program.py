"""A step run many times a dispatch: one compiled program for every number of steps."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from jaxspec._src.device.mapping import map_over_devices
from jaxspec._src.spec.tpu_estimator_spec import TPUEstimatorSpec, replaced
from jaxspec._src.step.debugging import debugging

MAX_IN_FLIGHT = 2
"""Dispatches that may wait on the devices. CPU devices deadlock when collectives run far ahead; two keep any busy."""


class Program:
    """A step run many times a dispatch on every device: one compiled program for every number of steps.

    Args:
      step: `(state, *batch) -> (state, spec)` if `trains`, else `(state, *batch) -> spec`, for one shard.
      devices: what it is mapped over.
      trains: whether the step changes the state. The state is donated then.
      rolled: whether the program holds a loop. If not, it makes one step, and batches have a capacity of one.
    """

    def __init__(
        self, step: Callable[..., Any], devices: Sequence[jax.Device], *, trains: bool, rolled: bool = True
    ) -> None:
        self.devices = tuple(devices)
        self.trains = trains
        self.rolled = rolled
        # jit caches the trace: the shapes of the outputs and the loop's body come from one run of the Python code.
        self._step = jax.jit(step if trains else lambda state, *batch: (None, step(state, *batch)))
        self._program = map_over_devices(
            self._run,
            self.devices,
            in_axes=(None, 1, None, None),
            out_axes=(None, None, 1),
            donate_argnums=(0,) if trains else (),
        )

    def __call__(self, state: Any, batches: Any, start: int, stop: int) -> tuple[Any, TPUEstimatorSpec]:
        """Runs the step on batches `start` to `stop - 1`.

        Args:
          state: without a device axis. Gone after the call if this loop trains.
          batches: a tuple of trees of `[capacity, shards, per-shard batch, ...]`, NumPy.
          start, stop: which of the `capacity` batches.

        Returns:
          (the new state or None, one spec for all steps): its loss is `[capacity, ...]`, its other leaves `[capacity,
          shards, ...]`, on the devices. Entries outside `start:stop` are zeros.
        """
        if debugging() and len(self.devices) == 1:
            return self._run_eagerly(state, batches, start, stop)
        with jax.transfer_guard(
            "allow"
        ):  # the batch has to reach the devices, whatever the caller forbids his own code
            new_state, loss, spec = self._program(state, batches, np.int32(start), np.int32(stop))
        return new_state, replaced(spec, loss=loss)

    def _run_eagerly(self, state: Any, batches: Any, start: int, stop: int) -> tuple[Any, TPUEstimatorSpec]:
        """The steps one after the other, with values instead of tracers."""
        specs: list[TPUEstimatorSpec] = []
        for i in range(start, stop):
            new_state, spec = self._step(state, *jax.tree.map(lambda x, i=i: jnp.asarray(x[i, 0]), batches))
            state = new_state if self.trains else state
            specs.append(jax.device_get(spec))
        capacity = jax.tree.leaves(batches)[0].shape[0]

        def stacked(*values: Any) -> Any:
            stack = np.zeros((capacity, *values[0].shape), values[0].dtype)
            stack[start:stop] = values
            return stack

        # A spec's functions are new objects at each call: only its leaves can be put together.
        rest = [replaced(spec, loss=None) for spec in specs]
        leaves = [stacked(*values)[:, None] for values in zip(*map(jax.tree.leaves, rest), strict=True)]
        loss = None if specs[0].loss is None else stacked(*(spec.loss for spec in specs))
        return state if self.trains else None, replaced(
            jax.tree.unflatten(jax.tree.structure(rest[-1]), leaves), loss=loss
        )

    def _run(self, state: Any, batches: Any, start: Any, stop: Any) -> tuple[Any, Any, Any]:
        def batch(i: Any) -> Any:
            return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), batches)

        capacity = jax.tree.leaves(batches)[0].shape[0]
        if not self.rolled:
            assert capacity == 1
            new_state, spec = self._step(state, *batch(0))
            spec = jax.tree.map(lambda x: x[None], spec)
            return new_state, spec.loss, replaced(spec, loss=None)
        _, out = jax.eval_shape(self._step, state, *batch(0))
        buffers = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), jax.tree.leaves(out))

        def body(i: Any, carry: tuple[Any, list[Any]]) -> tuple[Any, list[Any]]:
            carried, buffers = carry
            new, out = self._step(carried if self.trains else state, *batch(i))
            outputs = jax.tree.leaves(out)
            buffers = [jax.lax.dynamic_update_index_in_dim(b, x, i, 0) for b, x in zip(buffers, outputs, strict=True)]
            return new, buffers

        # A spec cannot be a loop carry (its functions are new objects at each trace): its leaves travel.
        new_state, buffers = jax.lax.fori_loop(start, stop, body, (state if self.trains else None, buffers))
        spec = jax.tree.unflatten(jax.tree.structure(out), buffers)
        return new_state, spec.loss, replaced(spec, loss=None)


def rolls_well(jaxpr: Any, devices: Sequence[jax.Device]) -> bool:
    """Whether a step with this jaxpr runs as fast in a loop as alone.

    On a CPU, XLA runs a convolution in the body of a loop several times slower than one outside. A program without a
    loop is used for such a step then, for every number of steps, so results do not depend on that number.
    """
    return devices[0].platform != "cpu" or (jaxpr is not None and not _has_convolution(jaxpr))


def _has_convolution(jaxpr: Any) -> bool:
    return any(
        equation.primitive.name == "conv_general_dilated"
        or any(_has_convolution(inner) for inner in jax.extend.core.jaxprs_in_params(equation.params))
        for equation in jaxpr.eqns
    )
