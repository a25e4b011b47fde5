"""A warm start in several processes: all start with the weights of process 0, or none does."""

import pytest

pytestmark = pytest.mark.slow(reason="starts programs of several processes")


def test_processes_that_read_different_weights_start_with_those_of_process_0(programs, tmp_path):
    with programs.run(tmp_path, "training_programs:warm_starts", timeout=180) as program:
        results = program.results()
    assert [result["w"] for result in results] == [13, 13]
    failed = [result["failed"] for result in results]
    assert [outcome["error"] for outcome in failed] == ["OtherProcessError", "MissingCheckpointError"]
    assert "there is nothing at" in failed[0]["text"]
