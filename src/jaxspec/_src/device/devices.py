"""Which devices a step is mapped over, and how they are described."""

from collections.abc import Sequence

import jax


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
    """A description for logs, such as `8 x TPU v5 lite, 1 process`."""
    if devices[0].platform == "cpu":
        return f"{len(devices)} x cpu ({'no accelerator found' if use_tpu else 'use_tpu=False'})"
    processes = len({device.process_index for device in devices})
    return f"{len(devices)} x {devices[0].device_kind}, {processes} process{'es' if processes > 1 else ''}"
