"""The peak FLOP/s of accelerators."""

from collections.abc import Sequence

import jax

_TPU_DOCS = "https://docs.cloud.google.com/tpu/docs/"
_NVIDIA = "https://www.nvidia.com/en-us/data-center/"
_PEAKS = {
    # TPUs: "peak compute per chip (bf16)". A v2, v3 or 7x chip is two devices of JAX, any other is one.
    "TPU v2": (46e12 / 2, _TPU_DOCS + "v2"),
    "TPU v3": (123e12 / 2, _TPU_DOCS + "v3"),
    "TPU v4": (275e12, _TPU_DOCS + "v4"),
    "TPU v5 lite": (197e12, _TPU_DOCS + "v5e"),
    "TPU v5": (459e12, _TPU_DOCS + "v5p"),
    "TPU v6 lite": (918e12, _TPU_DOCS + "v6e"),
    "TPU7x": (2307e12 / 2, _TPU_DOCS + "tpu7x"),
    # GPUs: tensor cores in bfloat16 (V100 and T4: float16), without sparsity, which doubles some published figures.
    "Tesla V100-SXM2-16GB": (125e12, _NVIDIA + "v100/"),
    "Tesla V100-SXM2-32GB": (125e12, _NVIDIA + "v100/"),
    "Tesla T4": (65e12, _NVIDIA + "tesla-t4/"),
    "NVIDIA A10": (125e12, _NVIDIA + "products/a10-gpu/"),
    "NVIDIA A100-PCIE-40GB": (312e12, _NVIDIA + "a100/"),
    "NVIDIA A100-SXM4-40GB": (312e12, _NVIDIA + "a100/"),
    "NVIDIA A100-SXM4-80GB": (312e12, _NVIDIA + "a100/"),
    "NVIDIA A100 80GB PCIe": (312e12, _NVIDIA + "a100/"),
    "NVIDIA L4": (242e12 / 2, _NVIDIA + "l4/"),
    "NVIDIA L40S": (733e12 / 2, _NVIDIA + "l40s/"),
    "NVIDIA H100 PCIe": (
        1513e12 / 2,
        "https://resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet",
    ),
    "NVIDIA H100 NVL": (1671e12 / 2, _NVIDIA + "h100/"),
    "NVIDIA H100 80GB HBM3": (1979e12 / 2, _NVIDIA + "h100/"),
    "NVIDIA H200 NVL": (1671e12 / 2, _NVIDIA + "h200/"),
    "NVIDIA H200": (1979e12 / 2, _NVIDIA + "h200/"),
    "NVIDIA B200": (4500e12 / 2, _NVIDIA + "hgx/"),
}
"""By `jax.Device.device_kind`: the peak of one device in FLOP/s, and where its maker says so."""


def peak_flops_per_sec(devices: Sequence[jax.Device]) -> float | None:
    """What the devices could do together, in bfloat16 matrix products; None if that of one is not known here."""
    peaks = [_PEAKS.get(device.device_kind) for device in devices]
    return None if None in peaks else sum(peak for peak, _ in filter(None, peaks))
