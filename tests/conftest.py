"""What JAX reads when it is first used, so that it is set before: four virtual CPU devices, and a store of programs."""

import os
import pathlib
import shutil
import sys

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")

# Most tests train one of a few tiny models, and compiling is most of the suite's work: a program that one test has
# compiled is read by all others, in this run and in later ones, in this process, the other worker and their children.
HERE = pathlib.Path(__file__).parent
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(HERE.parent / ".jax_cache"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

# The hundreds of checkpoints that the tests write are small, and the disk would be waited for. `tmp_path` is made here.
MEMORY = pathlib.Path("/dev/shm")
if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 2**30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))

# Tests that need a process of their own import from these, too.
os.environ["PYTHONPATH"] = os.pathsep.join([*map(str, HERE.glob("[a-z]*/")), *filter(None, sys.path)])

from bucket_servers import bucket, gs_server, s3_server  # noqa: E402, F401 (fixtures)
