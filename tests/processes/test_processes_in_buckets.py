"""Several processes with a model_dir in a bucket: they write one checkpoint together, where orbax can."""

import numpy as np
import pytest

from jaxspec.checkpoint import checkpoint_steps

pytestmark = pytest.mark.slow(reason="starts programs of several processes")


def train(programs, bucket, directory, processes, max_steps):
    return programs.run(
        directory,
        "training_programs:train_to",
        processes=processes,
        env=bucket.environment,
        model_dir=bucket.directory,
        max_steps=max_steps,
    )


def test_two_processes_train_and_one_goes_on(gs_server, programs, tmp_path):
    gs_server.start_test()
    for processes, max_steps in ((2, 2), (1, 4), (2, 6)):
        with train(programs, gs_server, tmp_path / str(max_steps), processes, max_steps) as program:
            program.results()
            assert not [line for line in program.log(0).splitlines() if "WARNING:jaxspec" in line]
    assert checkpoint_steps(gs_server.directory)[-1] == 6
    one, other = (dict(np.load(tmp_path / "6" / f"{process}.npz")) for process in range(2))
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def test_several_processes_cannot_write_to_s3_and_say_so(s3_server, programs, tmp_path):
    s3_server.start_test()
    with train(programs, s3_server, tmp_path, 2, 2) as program:
        assert program.exit_codes() == [1, 1]
        assert "several processes write a checkpoint together, to a disk that they share or to gs://" in program.log(0)
