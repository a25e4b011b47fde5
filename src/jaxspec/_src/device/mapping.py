"""Which devices a step is mapped over, and how: the only file that says shard_map."""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec._src.base.arrays import is_key
from jaxspec._src.base.types import PyTree, T
from jaxspec._src.step.axis import SHARD_AXIS

_logger = logging.getLogger("jaxspec")
_EVERYWHERE = jax.sharding.PartitionSpec()


def all_devices() -> tuple[jax.Device, ...]:
    """The devices of all processes. Those of one process follow each other, in the order of the processes."""
    return tuple(sorted(jax.devices(), key=lambda device: (device.process_index, device.id)))


def choose_devices(*, use_tpu: bool, num_shards: int | None) -> tuple[jax.Device, ...]:
    """The devices that an estimator maps over: `num_shards` (None: all) of `all_devices`, or one CPU device."""
    if not use_tpu:
        if jax.process_count() > 1:
            raise ValueError(
                f"use_tpu=False runs on one CPU device of one process, but there are {jax.process_count()} processes. "
                "Leave use_tpu as it is, which maps over the devices of all processes, CPUs too; or start one process."
            )
        return (jax.local_devices(backend="cpu")[0],)
    devices = all_devices()
    if num_shards is not None and num_shards > len(devices):
        raise ValueError(
            f"TPUConfig.num_shards is {num_shards}, but there are only {describe_devices(devices)}. Lower it, or leave "
            "it as None to use all. (On a CPU, XLA_FLAGS=--xla_force_host_platform_device_count=N makes N virtual "
            "devices.)"
        )
    if num_shards not in (None, len(devices)) and jax.process_count() > 1:
        raise ValueError(
            f"TPUConfig.num_shards is {num_shards}, but several processes map over all of their devices, which are "
            f"{describe_devices(devices)}. Leave num_shards as None."
        )
    return devices[:num_shards]


def local_devices_of(devices: Sequence[jax.Device]) -> tuple[jax.Device, ...]:
    """Those of the devices that belong to this process."""
    return tuple(device for device in devices if device.process_index == jax.process_index())


def inference_devices_of(devices: Sequence[jax.Device]) -> tuple[jax.Device, ...]:
    """What evaluation and prediction are mapped over: the devices of this process, or the first of them.

    On TPU v5e and v6e slices of 16 chips and more the compiler refuses collectives among the chips of one host, or any
    program that is not for one chip or all ("limited ICI routing").
    """
    local = local_devices_of(devices)
    if local[0].platform != "tpu" or len(local) in (1, len(devices)) or _can_reduce_over(local):
        return local
    _logger.warning(
        "Evaluation and prediction use 1 of the %d chips of each host: the TPU compiler refuses programs that run on "
        "the chips of one host of this slice. To use more, evaluate the checkpoints in a job on one host.",
        len(local),
    )
    return local[:1]


def _can_reduce_over(devices: Sequence[jax.Device]) -> bool:
    mesh, spec = _mesh(devices), jax.sharding.PartitionSpec(SHARD_AXIS)
    reduced = jax.shard_map(lambda x: jax.lax.psum(x, SHARD_AXIS), mesh=mesh, in_specs=spec, out_specs=_EVERYWHERE)
    program = jax.jit(reduced, in_shardings=jax.sharding.NamedSharding(mesh, spec))
    try:
        program.lower(jax.ShapeDtypeStruct((len(devices), 8), jnp.float32)).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def describe_devices(devices: Sequence[jax.Device], *, use_tpu: bool = True) -> str:
    """A description for logs, such as `8 x TPU v5 lite, 1 process`."""
    is_cpu = devices[0].platform == "cpu"
    processes = len({device.process_index for device in devices})
    counted = f"{processes} process{'es' if processes > 1 else ''}"
    if processes > 1:
        counted += f", of which this is process {jax.process_index()} (counted from 0)"
    if not is_cpu:
        return f"{len(devices)} x {devices[0].device_kind}, {counted}"
    why = "no accelerator found" if use_tpu else "use_tpu=False"
    return f"{len(devices)} x cpu ({why})" + (f", {counted}" if processes > 1 else "")


Outputs = TypeVar("Outputs", bound=tuple[PyTree, ...])


def map_over_devices(
    fn: Callable[..., Outputs],
    devices: Sequence[jax.Device],
    *,
    in_axes: Sequence[int | None],
    out_axes: Sequence[int | None],
    donate_argnums: Sequence[int] = (),
) -> Callable[..., Outputs]:
    """`fn` compiled for all `devices`, with `SHARD_AXIS` bound. Like `jax.pmap`, whose cache never drops a program.

    The devices may be those of several processes. Then each process passes its own part of a mapped argument (as NumPy
    arrays), and gets all of every result.

    Args:
      fn: returns a tuple.
      in_axes: for each argument the axis that is mapped over, of every leaf; None means broadcast.
      out_axes: likewise for each entry of the tuple; None means the same on all devices.
      donate_argnums: as in `jax.jit`.
    """
    mesh = _mesh(devices)

    def one_shard(*args: PyTree) -> tuple[PyTree, ...]:
        out = fn(*(_on_axis(jax.lax.squeeze, *pair) for pair in zip(args, in_axes, strict=True)))
        return tuple(_on_axis(jax.lax.expand_dims, *pair) for pair in zip(out, out_axes, strict=True))

    in_specs, out_specs = tuple(map(_partition, in_axes)), tuple(map(_partition, out_axes))
    # A step makes its own outputs the same on all devices, as under pmap.
    mapped = jax.shard_map(one_shard, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    in_shardings = tuple(jax.sharding.NamedSharding(mesh, spec) for spec in in_specs)
    compiled = functools.partial(jax.jit, mapped, in_shardings=in_shardings, donate_argnums=donate_argnums)
    program: Callable[..., Outputs]
    if len(local_devices_of(devices)) == len(devices):
        program = compiled()
    else:
        # All processes must call a program alike, so what one of them has is given to all within this one.
        program = compiled(out_shardings=jax.sharding.NamedSharding(mesh, _EVERYWHERE))
    if jax.process_count() == 1:
        return program

    def with_jax_arrays(*args: PyTree) -> Outputs:
        outputs: Outputs = program(*map(_as_jax_arrays, args, in_shardings))
        return outputs

    return with_jax_arrays


def _as_jax_arrays(arg: PyTree, sharding: jax.sharding.Sharding) -> PyTree:
    """The argument laid out as `sharding` says, each process giving its part: jit takes no NumPy arrays for that."""

    def one(x: np.ndarray | jax.Array) -> jax.Array:
        if isinstance(x, jax.Array) and (not x.is_fully_addressable or x.sharding == sharding):
            return x
        made: jax.Array = jax.make_array_from_process_local_data(sharding, np.asarray(x))
        return made

    return jax.tree.map(one, arg)


def _partition(axis: int | None) -> jax.sharding.PartitionSpec:
    return _EVERYWHERE if axis is None else jax.sharding.PartitionSpec(*[None] * axis, SHARD_AXIS)


def _on_axis(fn: Callable[[jax.Array, list[int]], jax.Array], tree: PyTree, axis: int | None) -> PyTree:
    return tree if axis is None else jax.tree.map(lambda x: fn(x, [axis]), tree)


def _mesh(devices: Sequence[jax.Device]) -> jax.sharding.Mesh:
    return jax.sharding.Mesh(np.array(devices), (SHARD_AXIS,))


def stack_of_parts(parts: Sequence[PyTree], devices: Sequence[jax.Device]) -> PyTree:
    """A mapped argument of `map_over_devices` with axis 1 mapped, from what each device of this process gets.

    Args:
      parts: for each of these devices, in order, a tree of arrays `[n, 1, ...]` on it.
      devices: of all processes.
    """
    sharding = jax.sharding.NamedSharding(_mesh(devices), _partition(1))

    def whole(*shards: jax.Array) -> jax.Array:
        shape = (shards[0].shape[0], len(devices), *shards[0].shape[2:])
        return jax.make_array_from_single_device_arrays(shape, sharding, list(shards))

    return jax.tree.map(whole, *parts)


def broadcast(state: T, devices: Sequence[jax.Device]) -> T:
    """A copy of the state on all `devices`, without a device axis, laid out as a mapped program returns it.

    Args:
      state: on a device of this process, or on all `devices`. Where they belong to several processes, each has the same
        values.
    """
    local, sharding = local_devices_of(devices), broadcast_sharding(devices)
    # device_put may let the first device's copy share the buffer of the original, which donation would then delete.
    state = jax.tree.map(jnp.copy, state)
    is_everywhere = any(not x.is_fully_addressable for x in jax.tree.leaves(state))
    if is_everywhere or len(local) == len(devices):
        copies: T = jax.device_put(state, sharding)
        return copies
    return _from_copies(lambda x: [jax.device_put(x, device) for device in local], state, devices)


def broadcast_sharding(devices: Sequence[jax.Device]) -> jax.sharding.Sharding:
    """The layout of a state that is the same on all `devices`."""
    return jax.sharding.NamedSharding(_mesh(devices), _EVERYWHERE)


def copied(state: T) -> T:
    """A copy of a broadcast state, on the same devices. Each process copies what it holds, and waits for no other."""
    if all(x.is_fully_addressable for x in jax.tree.leaves(state)):
        copies: T = jax.tree.map(jnp.copy, state)
        return copies
    return _from_copies(lambda x: [jnp.copy(shard.data) for shard in x.addressable_shards], state, _devices_of(state))


def on_devices(state: T, devices: Sequence[jax.Device]) -> T:
    """A broadcast state on other `devices`: some of those that hold it, or those of all processes. Nothing is copied.

    Each process has the state on those of the devices that are its own. A program for `devices` would accept a state on
    more, but would pick out these copies at each call.
    """
    if _devices_of(state) == tuple(devices):
        return state

    def copies(x: jax.Array) -> list[jax.Array]:
        by_device = {shard.device: shard.data for shard in x.addressable_shards}
        return [by_device[device] for device in local_devices_of(devices)]

    return _from_copies(copies, state, devices)


def from_first_process(state: T) -> T:
    """The values of process 0, on a device of each process. All processes must call it."""
    if jax.process_count() == 1:
        return state
    # Within a dispatch as any other, so it keeps its place among those of the training.
    from jax.experimental import multihost_utils

    def data(x: jax.Array) -> jax.Array:
        return jax.random.key_data(x) if is_key(x) else x

    def like(x: jax.Array, value: np.ndarray) -> jax.Array:
        array = jnp.asarray(value, data(x).dtype)
        return jax.random.wrap_key_data(array, impl=jax.random.key_impl(x)) if is_key(x) else array

    values = multihost_utils.broadcast_one_to_all(jax.tree.map(data, state))
    made: T = jax.tree.map(like, state, values)
    return made


def _devices_of(state: PyTree) -> tuple[jax.Device, ...]:
    return tuple(jax.tree.leaves(state)[0].sharding.mesh.devices.flat)


def _from_copies(copies: Callable[[jax.Array], list[jax.Array]], state: T, devices: Sequence[jax.Device]) -> T:
    """The state as broadcast arrays on `devices`, made of the copies of each leaf on those of this process."""
    sharding = broadcast_sharding(devices)

    def one(x: jax.Array) -> jax.Array:
        if is_key(x):
            keys: jax.Array = jax.random.wrap_key_data(one(jax.random.key_data(x)), impl=jax.random.key_impl(x))
            return keys
        return jax.make_array_from_single_device_arrays(x.shape, sharding, copies(x))

    made: T = jax.tree.map(one, state)
    return made
