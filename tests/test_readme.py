"""The README is short; its program is the example, and the output beside it the real one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
QUICKSTART = ROOT / "examples" / "quickstart.py"
NUMBER = r"\d+(?:\.\d+)?"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_it_is_short():
    assert len(README.splitlines()) <= 130


def test_the_program_is_the_example():
    assert blocks("python") == [QUICKSTART.read_text()]


def test_the_commands_are_targets_of_make():
    makefile = (ROOT / "Makefile").read_text()
    named = {
        *re.findall(r"`make ([\w-]+)`", README),
        *re.findall(r"^make ([\w-]+)", "\n".join(blocks("sh")), re.MULTILINE),
    }
    assert named >= {"demo", "test"}
    for target in named:
        assert re.search(rf"^{target}:.*## ", makefile, re.MULTILINE), target


def test_the_output_beside_it_is_the_real_one(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, QUICKSTART],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    shown = next(block for block in blocks("text") if "predicted" in block)
    assert re.sub(NUMBER, "#", done.stdout) == re.sub(NUMBER, "#", shown)
    # Another CPU rounds otherwise.
    printed = [float(number) for number in re.findall(NUMBER, done.stdout)]
    np.testing.assert_allclose(printed, [float(n) for n in re.findall(NUMBER, shown)], rtol=0.05, atol=0.03)
