"""Four virtual CPU devices for all tests; they are made when JAX is first used, so this comes before."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
