"""Four virtual CPU devices for all tests; they are made when JAX is first used, so this comes before."""

import os
import pathlib
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")

# Tests that need a process of their own import from these, too.
HERE = pathlib.Path(__file__).parent
os.environ["PYTHONPATH"] = os.pathsep.join([*map(str, HERE.glob("[a-z]*/")), *filter(None, sys.path)])
