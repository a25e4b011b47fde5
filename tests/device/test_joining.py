"""When `jax.distributed.initialize` is called for the user, without a cluster."""

import jax
import pytest

import jaxspec as js
from jaxspec._src.device import joining
from jaxspec._src.device.joining import join_processes


@pytest.fixture
def initialized(monkeypatch):
    """The arguments of the calls of `jax.distributed.initialize`, which does nothing."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **kwargs: calls.append((args, kwargs)))
    return calls


SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}


def set_env(monkeypatch, **values):
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_a_process_without_a_cluster_stays_alone(initialized):
    join_processes(None, None, None, timeout_secs=9)
    js.TPUEstimator(lambda features: None, model_dir="unused")
    assert initialized == []


def test_the_config_says_which_process_this_is(initialized):
    config = js.RunConfig(coordinator_address="10.0.0.1:8476", num_processes=2, process_id=1, process_timeout_secs=60)
    js.TPUEstimator(lambda features: None, model_dir="unused", config=config)
    times = {"initialization_timeout": 60, "heartbeat_timeout_seconds": joining.HEARTBEAT_SECS}
    assert initialized == [(("10.0.0.1:8476", 2, 1), times)]


def test_the_environment_of_a_cluster_is_enough(initialized, monkeypatch):
    set_env(monkeypatch, **SLURM)
    join_processes(None, None, None, timeout_secs=9)
    assert [args for args, _ in initialized] == [(None, None, None)]


@pytest.mark.parametrize("tasks", ["1", None])
def test_a_cluster_with_one_process_is_none(initialized, monkeypatch, tasks):
    set_env(monkeypatch, **{**SLURM, "SLURM_NTASKS": tasks or "2", "SLURM_STEP_NUM_TASKS": tasks or "2"})
    join_processes(None, None if tasks else 1, None, timeout_secs=9)
    assert initialized == []


def test_processes_that_are_joined_already_stay_as_they_are(initialized, monkeypatch):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    join_processes("10.0.0.1:8476", 2, 1, timeout_secs=9)
    assert initialized == []


def test_what_is_missing_is_named():
    with pytest.raises(
        ValueError, match=r"RunConfig: num_processes without coordinator_address, process_id\. Give all"
    ):
        join_processes(None, 2, None, timeout_secs=9)


def test_it_is_too_late_when_the_devices_are_in_use():
    jax.devices()
    with pytest.raises(RuntimeError, match=r"as RunConfig says .*a device was used before the TPUEstimator was made"):
        join_processes("127.0.0.1:1", 2, 0, timeout_secs=9)


def test_a_coordinator_that_cannot_be_reached_is_an_error_that_says_what_to_look_at(monkeypatch):
    def fails(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: failed to connect\nmore")

    monkeypatch.setattr(jax.distributed, "initialize", fails)
    with pytest.raises(RuntimeError, match=r"DEADLINE_EXCEEDED: failed to connect\. Is process 0 running, is the addr"):
        join_processes("10.0.0.1:8476", 2, 1, timeout_secs=9)


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"num_processes": 0}, "num_processes"),
        ({"num_processes": 2, "process_id": 2}, "process_id is 2, but there are 2 processes: it is counted from 0"),
        ({"process_id": -1}, "process_id"),
    ],
)
def test_numbers_of_processes_are_checked(kwargs, text):
    with pytest.raises(ValueError, match=text):
        js.RunConfig(**kwargs)


def test_the_address_is_a_string():
    with pytest.raises(TypeError, match="coordinator_address must be a string 'host:port', got 8476"):
        js.RunConfig(coordinator_address=8476)
