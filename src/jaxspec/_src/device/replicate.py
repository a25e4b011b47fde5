"""A pure step mapped over devices. The only file that says shard_map."""

import collections
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from jaxspec._src.base.arrays import describe_array, is_key, named_leaves
from jaxspec._src.spec.spec import TPUEstimatorSpec, WholeBatchSpec, replaced
from jaxspec._src.step.axis import SHARD_AXIS
from jaxspec._src.step.debugging import debugging

MAX_IN_FLIGHT = 2
"""Dispatches that may wait on the devices. CPU devices deadlock when collectives run far ahead; two keep any busy."""


def map_over_devices(
    fn: Callable[..., Any],
    devices: Sequence[jax.Device],
    *,
    in_axes: Sequence[int | None],
    out_axes: Sequence[int | None],
    donate_argnums: Any = (),
) -> Callable[..., Any]:
    """`fn` compiled for all `devices`, with `SHARD_AXIS` bound: `jax.pmap`, whose cache would keep every program for ever.

    Args:
      fn: returns a tuple.
      in_axes: for each argument the axis that is mapped over, of every leaf; None means broadcast.
      out_axes: likewise for each entry of the tuple; None means the same on all devices.
      donate_argnums: as in `jax.jit`.
    """
    mesh = _mesh(devices)

    def one_shard(*args: Any) -> tuple[Any, ...]:
        out = fn(*map(_without_axis, args, in_axes))
        return tuple(map(_with_axis, out, out_axes))

    in_specs, out_specs = tuple(map(_partition, in_axes)), tuple(map(_partition, out_axes))
    # A step says itself what is the same on all devices, as under pmap.
    mapped = jax.shard_map(one_shard, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    in_shardings = tuple(jax.sharding.NamedSharding(mesh, spec) for spec in in_specs)
    program: Callable[..., Any] = jax.jit(mapped, in_shardings=in_shardings, donate_argnums=donate_argnums)
    return program


def _partition(axis: int | None) -> jax.sharding.PartitionSpec:
    return jax.sharding.PartitionSpec() if axis is None else jax.sharding.PartitionSpec(*[None] * axis, SHARD_AXIS)


def _without_axis(tree: Any, axis: int | None) -> Any:
    return tree if axis is None else jax.tree.map(lambda x: jax.lax.squeeze(x, [axis]), tree)


def _with_axis(tree: Any, axis: int | None) -> Any:
    return tree if axis is None else jax.tree.map(lambda x: jax.lax.expand_dims(x, [axis]), tree)


def _mesh(devices: Sequence[jax.Device]) -> jax.sharding.Mesh:
    return jax.sharding.Mesh(np.array(devices), (SHARD_AXIS,))


class Loop:
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


def replicate(
    step: Callable[..., Any], devices: Sequence[jax.Device] | None = None, *, donate_state: bool = False
) -> Callable[..., Any]:
    """A step function mapped over devices: for people with their own loop.

        train_step = replicate(make_train_step(model_fn))
        state, spec = train_step(state, *shard((features, labels), jax.device_count()))
        print(gather(spec).loss)

    Args:
      step: what `make_train_step`, `make_eval_step` or `make_predict_step` returned.
      devices: None means all.
      donate_state: the state passed in is gone after the call. Saves its memory, in training loops.

    Returns:
      A function of a state without a device axis and of batches `[shards, per-shard batch, ...]`. It returns what
      `step` returns: the state without a device axis, the spec with a leading axis of shards on every leaf but the
      loss, which is averaged. It waits when several calls are unfinished, so a loop need not.
    """
    devices = tuple(jax.devices() if devices is None else devices)

    def mapped(state: Any, *batch: Any) -> tuple[Any, Any, Any]:
        out = step(state, *batch)
        new_state, spec = (None, out) if isinstance(out, TPUEstimatorSpec) else out
        return new_state, spec.loss, replaced(spec, loss=None)

    programs: dict[int, Callable[..., Any]] = {}
    in_flight: collections.deque[Any] = collections.deque()

    def replicated(state: Any, *batch: Any) -> Any:
        if len(batch) not in programs:
            programs[len(batch)] = map_over_devices(
                mapped,
                devices,
                in_axes=(None, *(0 for _ in batch)),
                out_axes=(None, None, 0),
                donate_argnums=(0,) if donate_state else (),
            )
        _check_sharded(batch, len(devices))
        if not _is_broadcast(state, devices):
            # As a mapped program would return it: otherwise the second call would compile another program.
            state = broadcast(state, devices)
        new_state, loss, spec = programs[len(batch)](state, *batch)
        spec = replaced(spec, loss=loss)
        in_flight.append(jax.tree.leaves(spec))
        if len(in_flight) > MAX_IN_FLIGHT:
            jax.block_until_ready(in_flight.popleft())
        return spec if new_state is None else (new_state, spec)

    return replicated


def _is_broadcast(state: Any, devices: tuple[jax.Device, ...]) -> bool:
    leaf = next((x for x in jax.tree.leaves(state) if isinstance(x, jax.Array)), None)
    sharding = None if leaf is None else leaf.sharding
    return isinstance(sharding, jax.sharding.NamedSharding) and tuple(sharding.mesh.devices.flat) == devices


def _check_sharded(batch: Any, num_shards: int) -> None:
    for name, leaf in named_leaves(batch).items():
        if (np.ndim(leaf) < 2 and np.ndim(leaf) == 0) or np.shape(leaf)[0] != num_shards:
            raise ValueError(
                f"batch leaf {name} is {describe_array(leaf)}, but the step is mapped over {num_shards} devices: its "
                f"leading axis must be {num_shards}. Write step(state, *shard((features, labels), {num_shards}))."
            )


def broadcast(state: Any, devices: Sequence[jax.Device]) -> Any:
    """A copy of the state on all `devices`, without a device axis, laid out as a mapped program returns it."""
    # device_put may let the first device's copy share the buffer of the original, which donation would then delete.
    return jax.device_put(jax.tree.map(jnp.copy, state), broadcast_sharding(devices))


def broadcast_sharding(devices: Sequence[jax.Device]) -> jax.sharding.Sharding:
    """The layout of a state that is the same on all `devices`."""
    return jax.sharding.NamedSharding(_mesh(devices), jax.sharding.PartitionSpec())


def on_first(state: Any, devices: Sequence[jax.Device]) -> Any:
    """The copies of a broadcast state that `devices`, the first of its own, hold; nothing is copied.

    A mapping over `devices` would take the state as it is, but look for the copies at each call.
    """
    sharding = broadcast_sharding(devices)

    def one(x: Any) -> Any:
        if is_key(x):
            return jax.random.wrap_key_data(one(jax.random.key_data(x)), impl=jax.random.key_impl(x))
        copies = {shard.device: shard.data for shard in x.addressable_shards}
        return jax.make_array_from_single_device_arrays(x.shape, sharding, [copies[device] for device in devices])

    return jax.tree.map(one, state)


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


def choose_devices(*, use_tpu: bool, num_shards: int | None) -> tuple[jax.Device, ...]:
    """The devices that an estimator maps over: `num_shards` (None: all) of `jax.devices()`, or one CPU device."""
    if not use_tpu:
        return (jax.local_devices(backend="cpu")[0],)
    devices = jax.devices()
    if num_shards is not None and num_shards > len(devices):
        raise ValueError(
            f"TPUConfig.num_shards is {num_shards}, but there are only {describe_devices(devices)}. Lower it, or leave it as "
            "None to use all. (On a CPU, XLA_FLAGS=--xla_force_host_platform_device_count=N makes N virtual devices.)"
        )
    return tuple(devices[:num_shards])


def describe_devices(devices: Sequence[jax.Device], *, use_tpu: bool = True) -> str:
    """As `8 x TPU v5 lite, 1 process`."""
    kind = devices[0].device_kind
    processes = len({device.process_index for device in devices})
    if devices[0].platform == "cpu":
        return f"{len(devices)} x cpu ({'no accelerator found' if use_tpu else 'use_tpu=False'})"
    return f"{len(devices)} x {kind}, {processes} process{'es' if processes > 1 else ''}"
