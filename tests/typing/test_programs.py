"""The programs in this folder, type-checked as a user would: they have just the errors that their lines name."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jaxspec

pytest.importorskip("mypy", reason="part of the extra `check`")

FOLDER = Path(__file__).parent
PROGRAMS = sorted(path for path in FOLDER.glob("*.py") if not path.name.startswith("test_"))
CONFIG = """
[mypy]
strict = true
[mypy-jaxspec.*]
ignore_errors = true
[mypy-optax.*,orbax.*,tensorboardX.*]
ignore_missing_imports = true
"""
ERROR = re.compile(r"(\w+\.py):(\d+): error: .*\[([\w-]+)\]")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The errors that mypy finds, as (file, line, code)."""
    config = tmp_path_factory.mktemp("mypy") / "mypy.ini"
    config.write_text(CONFIG)
    source = Path(jaxspec.__file__).parents[1]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--config-file",
            config,
            "--cache-dir",
            source.parent / ".mypy_cache/programs",
            *PROGRAMS,
        ],
        env={**os.environ, "MYPYPATH": str(source)},
        cwd=FOLDER,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if ": error: " in line]
    matches = [ERROR.fullmatch(line) for line in lines]
    assert all(matches), [line for line, match in zip(lines, matches, strict=True) if not match]
    return {
        (file, int(line), code): text
        for text, (file, line, code) in zip(lines, map(re.Match.groups, matches), strict=True)
    }


def named(path):
    """The errors that the comments of a program name."""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        _, _, codes = line.partition("  # error: ")
        yield from ((path.name, number, code) for code in codes.split(", ") if code)


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_a_program_has_the_errors_that_it_names(path, found):
    here = {error: text for error, text in found.items() if error[0] == path.name}
    expected = set(named(path))
    assert [text for error, text in here.items() if error not in expected] == []
    assert sorted(expected - set(here)) == []


def test_there_are_programs_with_and_without_errors():
    assert {bool(list(named(path))) for path in PROGRAMS} == {True, False}
