"""A process that is killed, and started again, ends where an undisturbed one does."""

import json
import os
import signal
import subprocess
import sys

import killed_runs
import numpy as np
import pytest

from jaxspec.checkpoint import checkpoint_steps


@pytest.mark.slow(reason="four processes train one after the other, and two of them are killed")
def test_runs_that_are_killed_and_started_again_end_with_the_same_weights_bit_for_bit(tmp_path):
    disturbed, undisturbed = str(tmp_path / "disturbed"), str(tmp_path / "undisturbed")
    runs = [
        {"model_dir": disturbed, "while_writing": 10},
        {"model_dir": disturbed, "when_whole": 15},
        {"model_dir": disturbed},
        {"model_dir": undisturbed},
    ]
    done = subprocess.run(
        [sys.executable, killed_runs.__file__],
        input="\n".join(map(json.dumps, runs)),
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.split() == [*["-9"] * 2, "0", "0"], done.stderr
    assert done.stderr.count("it is taken over") == 2  # without waiting
    assert signal.SIGKILL == 9
    assert checkpoint_steps(disturbed)[-1] == checkpoint_steps(undisturbed)[-1] == killed_runs.STEPS
    one, other = killed_runs.estimator(disturbed), killed_runs.estimator(undisturbed)
    names = one.get_variable_names()
    assert names == other.get_variable_names()
    for name in names:
        np.testing.assert_array_equal(one.get_variable_value(name), other.get_variable_value(name), err_msg=name)
