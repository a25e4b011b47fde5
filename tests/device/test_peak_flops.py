"""The peaks of accelerators: by the name that JAX gives a device."""

import types

import pytest

from jaxspec._src.device.peak_flops import _PEAKS, peak_flops_per_sec


def devices(kind, count):
    return [types.SimpleNamespace(device_kind=kind)] * count


@pytest.mark.parametrize(
    ("chip", "kind", "devices_a_chip", "peak"),
    [
        ("v3", "TPU v3", 2, 123e12),
        ("v4", "TPU v4", 1, 275e12),
        ("v5e", "TPU v5 lite", 1, 197e12),
        ("v5p", "TPU v5", 1, 459e12),
        ("v6e", "TPU v6 lite", 1, 918e12),
        ("7x", "TPU7x", 2, 2307e12),
        ("H100 SXM", "NVIDIA H100 80GB HBM3", 1, 989.5e12),
    ],
)
def test_the_peak_of_a_chip(chip, kind, devices_a_chip, peak):
    assert peak_flops_per_sec(devices(kind, 4 * devices_a_chip)) == 4 * peak


def test_of_other_devices_it_is_not_known():
    assert peak_flops_per_sec(devices("cpu", 2)) is None
    assert peak_flops_per_sec(devices("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 1)) is None
    assert peak_flops_per_sec([*devices("TPU v4", 1), *devices("cpu", 1)]) is None


def test_each_has_a_source():
    assert all(source.startswith("https://") for _, source in _PEAKS.values())
