"""Programs of several processes without the library, which test `processes` itself."""

import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import processes
from jax.sharding import NamedSharding, PartitionSpec


def sum_over_all():
    """Sums the numbers of all processes with a collective."""
    process = processes.join()
    mesh = jax.make_mesh((jax.device_count(),), ("i",))
    local = np.full(jax.local_device_count(), process + 1, np.float32)
    x = jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec("i")), local)
    processes.finish(float(jax.jit(jnp.sum)(x)))


def hang():
    """One process never ends."""
    print("hello", flush=True)
    if processes.join() == 1:
        time.sleep(600)


def leave_a_child():
    """A process leaves another one behind."""
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
