"""A training loop of one's own runs in two processes with two devices each as in one with four."""

import numpy as np
import own_loop_program
import pytest

pytestmark = pytest.mark.slow(reason="starts programs of several processes")


def test_replicate_shard_and_gather_give_each_process_the_whole_batch(programs, tmp_path):
    with programs.run(tmp_path, "own_loop_program:leave") as program:
        first, second = program.results()
    assert first == second
    alone = own_loop_program.train()
    np.testing.assert_allclose(first["losses"], alone["losses"], rtol=1e-5)
    for got, expected in zip(first["leaves"] + first["weights"], alone["leaves"] + alone["weights"], strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
