"""What holds on 1 and 4 shards holds on 8: tests of other files, in a process with so many devices."""

import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent
PROGRAMS = {
    "no random number is drawn twice": "import test_randomness as t; t.test_no_number_is_drawn_twice(sys.argv[1], 8)",
    "the steps give one answer": (
        "import test_mappings as t;[t.test_training_is_that_of_the_whole_batch(mapping, 8) for mapping in ('pmap', "
        "'shard_map', 'sharded inputs')]"
    ),
}


@pytest.mark.slow(reason="a process of its own compiles every program for eight devices")
@pytest.mark.parametrize("what", PROGRAMS)
def test_on_eight_shards_too(tmp_path, what):
    ran = subprocess.run(
        [sys.executable, "-c", f"import sys; {PROGRAMS[what]}; print('done')", str(tmp_path)],
        cwd=HERE,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.stdout == "done\n", ran.stderr[-2000:]
