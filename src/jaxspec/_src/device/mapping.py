"""Which devices a step is mapped over, and how: the only file that says shard_map."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec._src.base.arrays import is_key
from jaxspec._src.base.types import PyTree, T
from jaxspec._src.step.axis import SHARD_AXIS


def choose_devices(*, use_tpu: bool, num_shards: int | None) -> tuple[jax.Device, ...]:
    """The devices that an estimator maps over: `num_shards` (None: all) of `jax.devices()`, or one CPU device."""
    if not use_tpu:
        return (jax.local_devices(backend="cpu")[0],)
    devices = jax.devices()
    if num_shards is not None and num_shards > len(devices):
        raise ValueError(
            f"TPUConfig.num_shards is {num_shards}, but there are only {describe_devices(devices)}. Lower it, or leave "
            "it as None to use all. (On a CPU, XLA_FLAGS=--xla_force_host_platform_device_count=N makes N virtual "
            "devices.)"
        )
    return tuple(devices[:num_shards])


def describe_devices(devices: Sequence[jax.Device], *, use_tpu: bool = True) -> str:
    """A description for logs, such as `8 x TPU v5 lite, 1 process`."""
    if devices[0].platform == "cpu":
        return f"{len(devices)} x cpu ({'no accelerator found' if use_tpu else 'use_tpu=False'})"
    processes = len({device.process_index for device in devices})
    return f"{len(devices)} x {devices[0].device_kind}, {processes} process{'es' if processes > 1 else ''}"


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
    program: Callable[..., Outputs] = jax.jit(mapped, in_shardings=in_shardings, donate_argnums=donate_argnums)
    return program


def _partition(axis: int | None) -> jax.sharding.PartitionSpec:
    return jax.sharding.PartitionSpec() if axis is None else jax.sharding.PartitionSpec(*[None] * axis, SHARD_AXIS)


def _on_axis(fn: Callable[[jax.Array, list[int]], jax.Array], tree: PyTree, axis: int | None) -> PyTree:
    return tree if axis is None else jax.tree.map(lambda x: fn(x, [axis]), tree)


def _mesh(devices: Sequence[jax.Device]) -> jax.sharding.Mesh:
    return jax.sharding.Mesh(np.array(devices), (SHARD_AXIS,))


def broadcast(state: T, devices: Sequence[jax.Device]) -> T:
    """A copy of the state on all `devices`, without a device axis, laid out as a mapped program returns it."""
    # device_put may let the first device's copy share the buffer of the original, which donation would then delete.
    copies: T = jax.device_put(jax.tree.map(jnp.copy, state), broadcast_sharding(devices))
    return copies


def broadcast_sharding(devices: Sequence[jax.Device]) -> jax.sharding.Sharding:
    """The layout of a state that is the same on all `devices`."""
    return jax.sharding.NamedSharding(_mesh(devices), jax.sharding.PartitionSpec())


def on_first(state: PyTree, devices: Sequence[jax.Device]) -> PyTree:
    """A broadcast state on `devices`, the first of those that hold it. Nothing is copied.

    A program for `devices` would accept the whole state, but would pick out these copies at each call.
    """
    sharding = broadcast_sharding(devices)

    def one(x: jax.Array) -> PyTree:
        if is_key(x):
            return jax.random.wrap_key_data(one(jax.random.key_data(x)), impl=jax.random.key_impl(x))
        copies = {shard.device: shard.data for shard in x.addressable_shards}
        return jax.make_array_from_single_device_arrays(x.shape, sharding, [copies[device] for device in devices])

    return jax.tree.map(one, state)
