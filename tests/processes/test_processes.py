"""The helper that starts programs of several processes: it reports, ends what hangs, and sees what is left behind."""

import os
import signal

import pytest

pytestmark = pytest.mark.slow(reason="starts programs of several processes")


def test_a_program_runs_in_several_processes_and_leaves_its_results(programs, tmp_path):
    with programs.run(tmp_path, "plain_programs:sum_over_all", processes=3, devices=2) as program:
        assert program.results() == [12.0] * 3


def test_a_process_that_fails_is_a_failure_with_its_traceback(programs, tmp_path):
    with (
        programs.run(tmp_path, "plain_programs:no_such_function", processes=1) as program,
        pytest.raises(AssertionError, match=r"(?s)exit codes \[1\].*no attribute 'no_such_function'"),
    ):
        program.results()


def test_a_program_that_hangs_is_killed_and_its_output_shown(programs, tmp_path):
    with programs.run(tmp_path, "plain_programs:hang", timeout=5) as program:
        program.wait_for("hello", process=1)
        with pytest.raises(TimeoutError, match=r"(?s)process 0 has not ended in time.*process 1: runs.*hello"):
            program.exit_codes()
    assert program.exit_codes() == [-9, -9]


def test_a_process_that_is_left_behind_is_a_failure(programs, tmp_path):
    with (
        pytest.raises(AssertionError, match="processes are left") as error,
        programs.run(tmp_path, "plain_programs:leave_a_child", processes=1) as program,
    ):
        assert program.exit_codes() == [0]
    for pid in map(int, str(error.value).split("[")[1].split("]")[0].split(",")):
        os.kill(pid, signal.SIGKILL)


def test_a_signal_goes_to_one_process(programs, tmp_path):
    with programs.run(tmp_path, "plain_programs:hang", processes=2) as program:
        program.wait_for("hello", process=0)
        program.send(signal.SIGKILL, process=0)
        program.send(signal.SIGKILL, process=1)
        assert program.exit_codes() == [-9, -9]
