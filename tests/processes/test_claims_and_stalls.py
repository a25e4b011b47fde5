"""The claim on model_dir and the watchdog, with several processes."""

import os
import time

import pytest

from jaxspec._src.checkpoint.claim_holder import Holder

pytestmark = pytest.mark.slow(reason="starts programs of several processes")


def test_the_claim_of_another_training_ends_all_processes(programs, tmp_path):
    (tmp_path / "model").mkdir()
    claim = tmp_path / "model" / ".trainer.json"
    holder = Holder.of_this_process(time.time())
    holder.write(str(claim))
    with programs.run(tmp_path, "training_programs:train_to", model_dir="model", max_steps=2) as program:
        assert program.exit_codes() == [1, 1], program.story()
        assert f"RuntimeError: {tmp_path}/model is being trained by process {os.getpid()} on host" in program.log(0)
        assert "process 0 of this run has failed" in program.log(1)
        assert "is being trained by" in program.log(1)
    assert Holder.read(str(claim)) == holder


def test_process_0_claims_for_all_of_them(programs, tmp_path):
    with programs.run(tmp_path, "training_programs:train_for_ever", model_dir="model") as program:
        for process in (0, 1):
            program.wait_for("step", process=process)
        holder = Holder.read(str(tmp_path / "model" / ".trainer.json"))
        assert holder.is_alive()
        program.send(9, process=0)
        assert program.exit_codes()[0] == -9
    assert not holder.is_alive()


def test_each_process_says_which_other_one_it_waits_for(programs, tmp_path):
    with programs.run(tmp_path, "training_programs:hang", stall_timeout_secs=1, process_timeout_secs=60) as program:
        program.wait_for_log("training waits for the input", process=1)
        program.wait_for_log("training waits for process 1", process=0)
