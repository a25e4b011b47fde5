"""Two processes with two devices each train, evaluate and predict as one process with four does."""

import numpy as np
import pytest
import training_programs
from tiny_models import data

pytestmark = pytest.mark.slow(reason="starts programs of several processes")
TOLERANCE = dict(rtol=2e-4, atol=2e-5)
"""Sums over the shards are made in another order."""


def weights_of(program):
    """The weights that each process left, by name."""
    return [dict(np.load(path)) for path in sorted(program.directory.glob("*.npz"))]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The reference: one process with four devices."""
    return training_programs.everything(model_dir=tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def together(programs, tmp_path_factory):
    """Results and weights of both processes, for loops of 5 steps and of 1 step."""
    runs = []
    for every in (5, 1):
        directory = tmp_path_factory.mktemp(f"together-{every}")
        with programs.run(
            directory, "training_programs:leave_everything", model_dir=str(directory / "model"), every=every
        ) as program:
            runs.append((program.results(), weights_of(program), program.logs()))
    return runs


def test_training_gives_the_losses_and_weights_of_one_process(alone, together):
    results, weights, _ = together[0]
    for result in results:
        np.testing.assert_allclose(result["losses"], alone["result"]["losses"], **TOLERANCE)
        assert result["columns"] == alone["result"]["columns"]  # a named array, in each process of the whole batch
    assert weights[0].keys() == alone["weights"].keys()
    for name, value in alone["weights"].items():
        np.testing.assert_allclose(weights[0][name], value, **TOLERANCE, err_msg=name)


def test_the_processes_have_the_same_losses_weights_and_metrics_bit_for_bit(together):
    for (first, second), (weights, others), _ in together:
        assert first["losses"] == second["losses"]
        assert first["whole"] == second["whole"]
        assert first["nearly_empty"] == second["nearly_empty"]
        for name, value in weights.items():
            np.testing.assert_array_equal(value, others[name], err_msg=name)


def test_the_weights_are_the_same_bit_for_bit_for_every_loop_length(together):
    (_, long_loops, _), (_, single_steps, _) = together
    for name, value in long_loops[0].items():
        np.testing.assert_array_equal(value, single_steps[0][name], err_msg=name)


@pytest.mark.parametrize("name", ["whole", "nearly_empty"])
def test_every_example_counts_once_in_evaluation(alone, together, name):
    (got, _), _, _ = together[0]
    assert got[name].keys() == alone["result"][name].keys()
    assert got[name]["global_step"] == 12
    assert got[name]["accuracy"] == pytest.approx(alone["result"][name]["accuracy"], abs=1e-6)
    assert got[name]["loss"] == pytest.approx(alone["result"][name]["loss"], rel=2e-4)


def test_every_example_is_predicted_once_over_all_processes(alone, together):
    results, _, _ = together[0]
    parts = [result["predicted"] for result in results]
    assert all(parts)
    x, _ = data(rows=training_programs.EXAMPLES, seed=1)
    rows = sorted(row for part in parts for row in part)
    np.testing.assert_array_equal([row[0] for row in rows], np.sort(x[:, 0]))
    np.testing.assert_allclose(rows, sorted(alone["result"]["predicted"]), rtol=2e-3, atol=2e-4)


def test_host_call_runs_in_the_first_process_on_the_tensors_of_all(alone, together):
    (first, second), _, _ = together[0]
    assert second["host_calls"] == []
    assert first["host_calls"] == alone["result"]["host_calls"]
    assert [call[0] for call in first["host_calls"]] == [[step] * 4 for step in range(12)]


def test_the_first_process_writes_event_files_and_the_log_lines_of_training(together, tmp_path_factory):
    _, _, (first, second) = together[0]
    assert "2 processes" in first
    assert "loss" in first
    assert "global_step/sec" not in second


def test_checkpoints_fall_on_their_steps(alone, together):
    for result in [alone["result"], *together[0][0], *together[1][0]]:
        assert result["steps_of_checkpoints"] == [0, 6, 12]
