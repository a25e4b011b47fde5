"""Joining the processes of a cluster: calls `jax.distributed.initialize` for the user, at most once."""

import logging
import socket
import time

import jax

_logger = logging.getLogger("jaxspec")
HEARTBEAT_SECS = 30
"""A process that is killed is noticed after so long; JAX then ends the others. (JAX's own default is 100 s.)"""


def join_processes(
    coordinator_address: str | None, num_processes: int | None, process_id: int | None, *, timeout_secs: float
) -> None:
    """Makes this process one of several, if the arguments or the environment say so. A second call does nothing.

    It must come before the first use of a device.

    Args:
      coordinator_address: `host:port` of process 0.
      num_processes: how many there are. 1: this process stays alone, whatever the environment says.
      process_id: which one this is, counted from 0. Where all three are None, the environment decides, as far as JAX
        knows it: Cloud TPU, GKE, SLURM, Open MPI.
      timeout_secs: how long the others are waited for.

    Raises:
      ValueError: if one of the arguments is missing.
      RuntimeError: if the devices are in use already, or the others cannot be reached in time.
    """
    given = {"coordinator_address": coordinator_address, "num_processes": num_processes, "process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if jax.distributed.is_initialized() or num_processes == 1:
        return
    if len(missing) == len(given):
        detected = _processes_of_environment()
        if detected <= 1:
            return
        told_by, shown = "the environment", f"{detected} processes"
    elif missing:
        raise ValueError(
            f"RunConfig: {', '.join(sorted(given.keys() - set(missing)))} without {', '.join(missing)}. Give all three "
            "in every process, such as coordinator_address='10.0.0.1:8476', num_processes=2, process_id=0; or none, "
            "where the environment of the cluster says it."
        )
    else:
        told_by, shown = "RunConfig", f"process {process_id} of {num_processes}, with {coordinator_address}"
    try:
        if coordinator_address is not None and process_id != 0:
            _wait_for_coordinator(coordinator_address, timeout_secs)
        # JAX's service for preemptions would take SIGTERM from the process, outside of a training, too.
        jax.config.update("jax_enable_preemption_service", False)
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            initialization_timeout=int(timeout_secs),
            heartbeat_timeout_seconds=HEARTBEAT_SECS,
        )
    except Exception as error:
        is_late = "must be called before" in str(error)
        advice = (
            "a device was used before the TPUEstimator was made. Make the estimator first, or call "
            "jax.distributed.initialize() at the top of the program; with RunConfig(num_processes=1) this process "
            "stays alone."
            if is_late
            else f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}. Is process 0 running, is the "
            "address that of its machine, and is the port open?"
        )
        raise RuntimeError(f"the processes could not be joined, as {told_by} says ({shown}): {advice}") from error


def leave_processes() -> None:
    """Waits until all processes leave, and leaves them. For a process that a signal is about to end.

    Otherwise JAX does it when Python ends. If process 0 ended without it, JAX would abort the others.
    """
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()


def _wait_for_coordinator(address: str, timeout_secs: float) -> None:
    """Waits until somebody listens at `address`. Without it JAX would abort the process where nobody does.

    Raises:
      OSError: if nobody does in time.
    """
    host, port = address.rsplit(":", 1)
    end = time.monotonic() + timeout_secs
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_secs).close()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
        else:
            return


def _processes_of_environment() -> int:
    """How many processes the cluster has that JAX detects; 1 if it detects none."""
    from jax._src.clusters import ClusterEnv  # what jax.distributed.initialize asks, when it is given nothing

    for cluster in ClusterEnv._cluster_types:
        if not cluster.opt_in_only_method and cluster.is_env_present():
            return int(cluster.get_process_count())
    return 1
