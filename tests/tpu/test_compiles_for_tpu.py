"""The digits example through the real TPU compiler, for slices of chips that are not here. `make test-tpu`.

Not collected by a plain `pytest`: it needs libtpu, which has an environment of its own.
"""

import math
import os
import re

# libtpu would ask the machine's metadata server which TPU it runs on.
os.environ["TPU_SKIP_MDS_QUERY"] = "1"

import digits
import jax
import numpy as np
import pytest
from jax.experimental import topologies

import jaxspec as js
from jaxspec._src.device.mapping import inference_devices_of
from jaxspec._src.device.program import Program
from jaxspec._src.step.inference_step import placed_step
from jaxspec._src.step.model import Model
from jaxspec._src.step.tracing import shapes
from jaxspec._src.step.train_step import train_step

ROWS = 16
CAPACITY = 4
MODEL = Model(digits.model_fn, digits.PARAMS)


@pytest.fixture(scope="module", params=["v5e:2x2", "v5e:2x4", "v5e:16x16"])
def devices(request):
    """All chips of a slice: of 1, 2, and 64 hosts with 4 chips each."""
    topology = topologies.get_topology_desc(platform="tpu", topology_name=request.param)
    assert len(topology.devices) == math.prod(int(n) for n in request.param.partition(":")[2].split("x"))
    return topology.devices


@pytest.fixture(scope="module")
def inference_devices(devices):
    """What evaluation and prediction map over: the chips of the first host, or one where the compiler wants that."""
    chosen = inference_devices_of(devices)
    assert len(chosen) == {4: 4, 8: 4, 256: 1}[len(devices)]
    return chosen


@pytest.fixture(scope="module")
def state():
    features = np.zeros((ROWS, 8, 8, 1), np.float32)
    labels = np.zeros(ROWS, np.int32)
    return js.create_train_state(digits.model_fn, digits.INIT_FN, jax.random.key(0), features, labels, digits.PARAMS)


def batches(num_shards, *, place):
    """What a loop takes, as shapes: images, digits, and in evaluation the numbers of each batch and of its first
    shard."""
    lead = (CAPACITY, num_shards)
    images = jax.ShapeDtypeStruct((*lead, ROWS, 8, 8, 1), np.float32)
    labels = jax.ShapeDtypeStruct((*lead, ROWS), np.int32)
    return (images, labels, jax.ShapeDtypeStruct((*lead, 2), np.int32)) if place else (images, labels)


def compiled(loop, state, batches):
    starts = np.zeros((1, len(loop.devices)), np.int32)
    return loop._program.lower(shapes(state), batches, starts, np.int32(CAPACITY)).compile()


@pytest.fixture(scope="module")
def training(devices, state):
    return compiled(Program(train_step(MODEL), devices, trains=True), state, batches(len(devices), place=False))


def replica_groups(hlo, op):
    """The replica groups of each `op` in a program's text: `[[0, 1, ...]]` where all replicas are in one."""
    # The asynchronous form of an operation is called all-reduce-start.
    lines = re.findall(rf"^.* = .* {op}(?:-start)?\(.*$", hlo, re.MULTILINE)
    return [groups_of(line) for line in lines]


def groups_of(line):
    """As XLA writes them: {{0,1},{2,3}}, or [groups,size]<=[dimensions] with an optional T(permutation), or
    mesh['axis'=size,...] {'axis',...}."""
    listed = re.search(r"replica_groups=\{(\{[\d,{}]*\})?\}", line)
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line)
    if iota:
        groups, size, dims, order = iota.groups()
        ids = ids_of_shape([int(n) for n in dims.split(",")])
        if order:
            ids = ids.transpose([int(n) for n in order.split(",")])
        return ids.reshape(int(groups), int(size)).tolist()
    if mesh:
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        grouped = re.findall(r"'(\w+)'", mesh[2])
        order = [i for i, name in enumerate(sizes) if name not in grouped] + [
            list(sizes).index(name) for name in grouped
        ]
        return (
            ids_of_shape(list(sizes.values()))
            .transpose(order)
            .reshape(-1, math.prod(sizes[n] for n in grouped))
            .tolist()
        )
    assert listed, line
    groups = re.findall(r"\{([\d,]+)\}", listed[1] or "")
    return [[int(n) for n in group.split(",")] for group in groups]


def ids_of_shape(dims):
    return np.arange(math.prod(dims)).reshape(dims)


def all_reduced_elements(hlo):
    """How many numbers all all-reduces of a program's text reduce."""
    results = re.findall(r"^.* = (.*?) all-reduce(?:-start)?\(", hlo, re.MULTILINE)
    sizes = [
        math.prod(int(n) for n in dims.split(",") if n)
        for result in results
        for dims in re.findall(r"\w+\[([\d,]*)\]", result)
    ]
    return sum(sizes)


def test_gradients_are_reduced_over_all_replicas_in_one_group(devices, state, training):
    hlo = training.as_text()
    groups = replica_groups(hlo, "all-reduce")
    assert groups
    for group in groups:
        assert [sorted(ids) for ids in group] == [list(range(len(devices)))]
    # Besides the gradients: the statistics of batch norm, and the loss.
    reduced = jax.tree.leaves((state.variables["params"], state.variables["batch_stats"]))
    assert all_reduced_elements(hlo) >= sum(x.size for x in reduced) + 1


def test_flops_are_those_of_the_compiler_without_elementwise_operations(devices, state):
    program = Program(train_step(MODEL), devices, trains=True)
    of_compiler = compiled(program, state, batches(len(devices), place=False)).cost_analysis()["flops"]
    assert 0.7 * of_compiler < program.flops_per_step / len(devices) < of_compiler
    assert program.peak_flops_per_sec == len(devices) * 197e12


def test_the_whole_state_is_donated(state, training):
    leaves = [x if x is not state.rng else jax.random.key_data(x) for x in jax.tree.leaves(state)]
    assert training.memory_analysis().alias_size_in_bytes >= sum(x.nbytes for x in leaves)
    # On TPU small arrays are padded, so the bytes alone could hide a leaf that is not.
    aliases = re.search(r"input_output_alias=\{(.*?)\}, entry_computation_layout", training.as_text())[1]
    assert re.findall(r"\{(\d+)\}: \((\d+),", aliases) == [(str(i), str(i)) for i in range(len(leaves))]


def test_the_number_of_steps_is_no_part_of_the_program(training):
    loops = re.findall(r'^.* while\(.*op_name="[^"]*shard_map/while".*$', training.as_text(), re.MULTILINE)
    assert len(loops) == 1
    assert "known_trip_count" not in loops[0]


def test_evaluation_compiles(inference_devices, state):
    loop = Program(placed_step(js.ModeKeys.EVAL, MODEL), inference_devices, trains=False)
    program = compiled(loop, state, batches(len(inference_devices), place=True))
    groups = replica_groups(program.as_text(), "all-reduce")  # of the loss
    assert groups or len(inference_devices) == 1
    for group in groups:
        assert [sorted(ids) for ids in group] == [list(range(len(inference_devices)))]
    assert program.memory_analysis().alias_size_in_bytes == 0


def test_prediction_compiles_and_asks_no_other_replica(inference_devices, state):
    loop = Program(placed_step(js.ModeKeys.PREDICT, MODEL), inference_devices, trains=False)
    program = compiled(loop, state, batches(len(inference_devices), place=True))
    assert not re.findall(r" (?:all-|reduce-scatter|collective-)[\w-]*\(", program.as_text())
