"""Trainings in a bucket that are killed before one of their requests end as undisturbed ones on a disk do."""

import os
import random
import signal
import subprocess
import sys

import crash_runs
import crash_training
import pytest

from jaxspec._src.checkpoint import checksums
from jaxspec.checkpoint import checkpoint_steps

KILLS = 5


@pytest.mark.slow("seven processes train one after the other, and five of them are killed")
def test_trainings_that_are_killed_before_a_request_end_with_the_same_checkpoint_bit_for_bit(bucket, tmp_path):
    code, _, logged = crash_runs.run("dropout", tmp_path / "undisturbed")
    assert code == 0, logged
    generator, codes = random.Random(0), []
    while 0 not in codes:
        training = subprocess.Popen(
            [sys.executable, crash_training.__file__, "dropout", bucket.directory],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if len(codes) < KILLS:
            # Of those that change something. An undisturbed training makes some 600 of them in gs://, 250 in s3://.
            number = generator.randint(1, {"gs": 150, "s3": 60}[bucket.scheme])
            bucket.at(("POST", "PUT", "DELETE"), "", lambda pid=training.pid: os.kill(pid, signal.SIGKILL), number)
        try:
            out, _ = training.communicate(timeout=200)
        finally:
            training.kill()
        bucket.works_again()
        codes.append(training.returncode)
        assert codes[-1] in (0, -signal.SIGKILL), out
        for step in checkpoint_steps(bucket.directory):
            checksums.verify(f"{bucket.directory}/model.ckpt-{step}", step)
    assert codes.count(-signal.SIGKILL) == KILLS
    assert checkpoint_steps(bucket.directory)[-1] == crash_training.STEPS
    crash_runs.check_equal(crash_runs.last_arrays(bucket.directory), crash_runs.last_arrays(tmp_path / "undisturbed"))
