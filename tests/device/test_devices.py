"""Which devices are mapped over."""

import jax
import pytest

from jaxspec._src.device.mapping import choose_devices, describe_devices


def test_choosing_devices():
    assert len(choose_devices(use_tpu=True, num_shards=None)) == 4
    assert len(choose_devices(use_tpu=True, num_shards=2)) == 2
    assert len(choose_devices(use_tpu=False, num_shards=2)) == 1
    with pytest.raises(ValueError, match=r"num_shards is 8, but there are only 4 x cpu.*Lower it, or leave it as None"):
        choose_devices(use_tpu=True, num_shards=8)
    assert describe_devices(jax.devices()) == "4 x cpu (no accelerator found)"
