"""A signal to one process ends all after the same step, saved. A process that is killed ends the others."""

import signal

import pytest

from jaxspec.checkpoint import checkpoint_steps

pytestmark = pytest.mark.slow(reason="starts programs of several processes")
LONGEST_SECS = 60


def send_at_step(program, number, process):
    """Sends the signal when both processes have made some steps."""
    for each in (0, 1):
        program.wait_for("step 10\n", process=each)
    program.send(number, process=process)


@pytest.mark.parametrize(
    ("number", "process"), [(signal.SIGTERM, 1), (signal.SIGTERM, 0), (signal.SIGINT, 1), (signal.SIGINT, 0)]
)
def test_a_signal_to_one_process_ends_all_with_one_checkpoint(programs, tmp_path, number, process):
    model_dir = tmp_path / "model"
    with programs.run(tmp_path, "training_programs:train_for_ever", model_dir=str(model_dir)) as program:
        send_at_step(program, number, process)
        assert program.exit_codes() == [-number, -number], program.story()
        last = [program.output(each).split()[-1] for each in (0, 1)]
        assert last[0] == last[1]
    assert str(checkpoint_steps(model_dir)[-1]) == last[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_evaluation_in_all_processes(programs, tmp_path, number):
    with programs.run(tmp_path, "training_programs:evaluate_for_ever", model_dir=str(tmp_path / "model")) as program:
        for each in (0, 1):
            program.wait_for("batch", process=each)
        program.send(number, process=1)
        assert all(program.exit_codes()), program.story()


@pytest.mark.parametrize("process", [1, 0])
def test_a_process_that_is_killed_ends_the_others(programs, tmp_path, process):
    model_dir = tmp_path / "model"
    with programs.run(tmp_path, "training_programs:train_for_ever", model_dir=str(model_dir), save=5) as program:
        send_at_step(program, signal.SIGKILL, process)
        codes = program.exit_codes()
        assert codes[process] == -signal.SIGKILL
        assert codes[1 - process] != 0
        assert program.ended(1 - process) - program.ended(process) < LONGEST_SECS
    assert checkpoint_steps(model_dir)


def test_after_a_kill_a_new_start_goes_on_at_the_checkpoint(programs, tmp_path):
    model_dir = str(tmp_path / "model")
    with programs.run(tmp_path / "killed", "training_programs:train_for_ever", model_dir=model_dir, save=5) as program:
        send_at_step(program, signal.SIGKILL, 1)
        program.exit_codes()
    step = checkpoint_steps(model_dir)[-1]
    with programs.run(tmp_path / "again", "training_programs:train_for_ever", model_dir=model_dir, save=5) as program:
        for each in (0, 1):
            program.wait_for(f"step {step + 5}\n", process=each)
        program.send(signal.SIGTERM, process=0)
        assert program.exit_codes() == [-signal.SIGTERM] * 2
