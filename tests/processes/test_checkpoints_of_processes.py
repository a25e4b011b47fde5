"""Checkpoints are the same, whatever number of processes and devices wrote them, or reads them."""

import numpy as np
import pytest

from jaxspec.checkpoint import checkpoint_steps

pytestmark = pytest.mark.slow(reason="starts programs of several processes")
SHAPES = [(2, 2), (1, 1), (2, 2), (1, 8), (2, 2), (4, 1), (3, 1), (2, 2)]
"""(processes, devices of each); 2 x 2 wrote the checkpoint that each of the others reads, and reads theirs."""


@pytest.fixture(scope="module")
def chain(programs, tmp_path_factory):
    """Weights and logs of programs that train on one after the other, two steps each, on one model_dir."""
    directory, runs = tmp_path_factory.mktemp("chain"), []
    for number, (processes, devices) in enumerate(SHAPES, 1):
        with programs.run(
            directory / str(number),
            "training_programs:train_to",
            processes=processes,
            devices=devices,
            model_dir=str(directory / "model"),
            max_steps=2 * number,
        ) as program:
            program.results()
            files = [program.directory / f"{process}.npz" for process in range(processes)]
            runs.append(([dict(np.load(file)) for file in files], program.logs()))
    return directory / "model", runs


def test_every_number_of_processes_trains_on_and_saves(chain):
    model_dir, runs = chain
    assert len(runs) == len(SHAPES)
    assert checkpoint_steps(model_dir)[-1] == 2 * len(SHAPES)


def test_all_processes_have_the_same_weights(chain):
    for weights, _ in chain[1]:
        for others in weights[1:]:
            for name, value in weights[0].items():
                np.testing.assert_array_equal(value, others[name], err_msg=name)


def test_the_input_goes_on_where_it_stood_for_every_number_of_processes(chain):
    for _, logs in chain[1]:
        for log in logs:
            assert "begins" not in log
            assert "WARNING:jaxspec" not in log


def test_the_weights_are_those_of_an_undisturbed_run(chain, programs, tmp_path):
    with programs.run(
        tmp_path, "training_programs:train_to", processes=1, devices=1, model_dir="model", max_steps=2 * len(SHAPES)
    ) as program:
        program.results()
    undisturbed = dict(np.load(tmp_path / "0.npz"))
    for name, value in undisturbed.items():
        np.testing.assert_allclose(chain[1][-1][0][0][name], value, rtol=1e-3, atol=1e-4, err_msg=name)
