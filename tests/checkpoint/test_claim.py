"""One training at a time has a model_dir; the claim of one that is dead keeps nobody out."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from tiny_models import counting_init, counting_input, counting_model_fn, run_config

import jaxspec as js
from jaxspec._src.base import buckets
from jaxspec._src.checkpoint import claim as claim_module
from jaxspec._src.checkpoint.claim import claimed
from jaxspec._src.checkpoint.claim_holder import Holder
from jaxspec.checkpoint import checkpoint_steps
from jaxspec.hooks import SessionRunHook

NAME = ".trainer.json"


def counting(model_dir, save=2):
    sizes = dict.fromkeys(("train_batch_size", "eval_batch_size", "predict_batch_size"), 4)
    config = run_config(save=save, every=2, num_shards=1)
    return js.TPUEstimator(counting_model_fn, counting_init, model_dir=model_dir, config=config, **sizes)


class Calls(SessionRunHook):
    """Calls a function after the first loop."""

    def __init__(self, do):
        self.do = do

    def after_run(self, run_context, run_values):
        do, self.do = self.do, lambda: None
        do()


@pytest.fixture
def process():
    """A process that lives on, which a test may end."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as one:
        yield one
        one.kill()


def holder_in(process, **changes):
    """The claim of a training in that process."""
    mine = Holder.of_this_process(time.time())
    began = psutil.Process(process.pid).create_time()
    return dataclasses.replace(mine, pid=process.pid, process_began=began, **changes)


def put(holder, model_dir):
    model_dir.mkdir(exist_ok=True)
    holder.write(str(model_dir / NAME))


def read(model_dir):
    return json.loads((model_dir / NAME).read_text())


# In a run.


def test_the_claim_names_the_process_and_goes_with_the_training(tmp_path):
    found = []
    counting(tmp_path).train(counting_input(), steps=4, hooks=[Calls(lambda: found.append(read(tmp_path)))])
    assert found[0]["pid"] == os.getpid()
    assert not list(tmp_path.glob(f"{NAME}*"))


def test_it_goes_when_training_fails(tmp_path):
    def fails():
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        counting(tmp_path).train(counting_input(), steps=4, hooks=[Calls(fails)])
    with pytest.raises(ValueError, match="mine"):
        counting(tmp_path).train(fails, steps=4)
    assert not list(tmp_path.glob(f"{NAME}*"))


def test_a_second_training_in_another_process_is_refused(tmp_path, process):
    put(holder_in(process, host="h1", since=1_790_000_000.0), tmp_path)
    with pytest.raises(RuntimeError) as caught:
        counting(tmp_path).train(counting_input(), steps=2)
    assert str(caught.value) == (
        f"{tmp_path} is being trained by process {process.pid} on host h1, since 2026-09-21 14:13:20 UTC. Two trainings "
        "would overwrite each other's checkpoints: give this one another model_dir, or end that one first. If there is "
        f"no such training, remove {tmp_path}/{NAME}."
    )
    assert os.listdir(tmp_path) == [NAME]


def test_a_second_training_in_this_process_is_refused(tmp_path):
    def another():
        with pytest.raises(RuntimeError, match=rf"is being trained by process {os.getpid()} \(this one\) on host"):
            counting(tmp_path).train(counting_input(), steps=2)

    def in_a_thread():
        thread = threading.Thread(target=another)
        thread.start()
        thread.join()

    counting(tmp_path).train(counting_input(), steps=4, hooks=[Calls(another), Calls(in_a_thread)])
    assert checkpoint_steps(tmp_path) == [0, 2, 4]


def test_evaluation_and_prediction_need_no_claim(tmp_path, process):
    counting(tmp_path).train(counting_input(), steps=2)
    put(holder_in(process), tmp_path)
    assert counting(tmp_path).evaluate(counting_input(2))["global_step"] == 2
    assert len(list(counting(tmp_path).predict(counting_input(2)))) == 8


def test_the_claim_of_a_dead_process_is_taken_over_at_once_with_a_warning(tmp_path, process, caplog):
    put(holder_in(process), tmp_path)
    process.kill()
    process.wait()
    counting(tmp_path).train(counting_input(), steps=2)
    assert f"by process {process.pid} on host" in caplog.text
    assert "has ended without saying so: it is taken over." in caplog.text
    assert checkpoint_steps(tmp_path) == [0, 2]


def test_a_process_that_was_killed_and_not_waited_for_is_dead(tmp_path, process):
    put(holder_in(process), tmp_path)
    process.kill()
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    counting(tmp_path).train(counting_input(), steps=2)


def test_a_process_that_has_got_the_same_id_later_is_another_one(tmp_path, process):
    one = holder_in(process)
    put(dataclasses.replace(one, process_began=one.process_began - 3600), tmp_path)
    counting(tmp_path).train(counting_input(), steps=2)


def test_a_claim_that_this_process_did_not_get_to_remove_is_taken_over(tmp_path, caplog):
    put(Holder.of_this_process(time.time()), tmp_path)
    counting(tmp_path).train(counting_input(), steps=2)
    assert "it is taken over" in caplog.text


def test_what_is_no_claim_is_none(tmp_path):
    (tmp_path / NAME).write_text('{"pid": ')
    counting(tmp_path).train(counting_input(), steps=2)
    assert not (tmp_path / NAME).exists()


def test_one_that_was_taken_over_writes_no_more_checkpoints(tmp_path, process):
    other = holder_in(process)
    with pytest.raises(RuntimeError, match=f"was taken over by another training, in process {process.pid} on host"):
        counting(tmp_path).train(counting_input(), steps=8, hooks=[Calls(lambda: put(other, tmp_path))])
    assert checkpoint_steps(tmp_path) == [0, 2]
    assert read(tmp_path)["id"] == other.id


def test_a_directory_that_cannot_be_written_to_is_not_claimed(tmp_path, monkeypatch, caplog):
    def fails(self, path):
        raise OSError(30, "Read-only file system", path)

    monkeypatch.setattr(Holder, "write", fails)
    caplog.set_level("INFO", "jaxspec")
    assert counting(tmp_path, save=None).train(counting_input(), steps=2).get_variable_value("params/w") == 2
    assert "model_dir cannot be written to ([Errno 30] Read-only file system" in caplog.text
    assert "other trainings of it are not kept out" in caplog.text


def test_a_child_that_the_training_has_forked_leaves_the_claim(tmp_path, monkeypatch):
    with claimed(str(tmp_path)) as claim:
        pid = os.getpid()
        with monkeypatch.context() as child:
            child.setattr(os, "getpid", lambda: pid + 1)
            claim.end()
        assert read(tmp_path)["pid"] == pid
    assert not (tmp_path / NAME).exists()


def test_it_is_refreshed(tmp_path, monkeypatch):
    monkeypatch.setattr(claim_module, "_REFRESH_SECS", 0.01)
    times = iter(range(100, 10_000))
    with claimed(str(tmp_path), clock=lambda: float(next(times))):
        end = time.monotonic() + 60
        while read(tmp_path)["refreshed"] < 103:
            assert time.monotonic() < end
        assert read(tmp_path)["since"] == 100


# Of another machine.


class Watch:
    """The time that passes while another machine's claim is watched; `change` is called after some seconds."""

    def __init__(self, change=lambda: None, after=5):
        self.now, self.slept, self.change, self.after = 1_790_000_000.0, 0, change, after

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        self.slept += seconds
        if self.slept == self.after:
            self.change()

    def claimed(self, model_dir):
        return claimed(str(model_dir), clock=self.clock, sleep=self.sleep)


def elsewhere(refreshed=1_790_000_000.0):
    mine = Holder.of_this_process(refreshed)
    return dataclasses.replace(mine, machine="another", host="h2", pid=7)


def test_another_machine_that_refreshes_its_claim_is_alive(tmp_path, caplog):
    other = elsewhere()
    put(other, tmp_path)
    watch = Watch(lambda: put(dataclasses.replace(other, refreshed=other.refreshed + 10), tmp_path))
    with pytest.raises(RuntimeError, match="is being trained by process 7 on host h2"), watch.claimed(tmp_path):
        pass
    assert watch.slept == 5
    assert "is claimed by process 7 on host h2" in caplog.text
    assert "If that is alive, it shows within 40 s." in caplog.text


def test_another_machine_that_does_not_is_dead(tmp_path, caplog):
    put(elsewhere(), tmp_path)
    watch = Watch()
    with watch.claimed(tmp_path):
        assert read(tmp_path)["pid"] == os.getpid()
    assert watch.slept == 40
    assert "it is taken over" in caplog.text


def test_another_machine_that_gives_its_claim_up_meanwhile_lets_this_one_in(tmp_path):
    put(elsewhere(), tmp_path)
    watch = Watch(lambda: (tmp_path / NAME).unlink())
    with watch.claimed(tmp_path):
        assert watch.slept == 5


@pytest.mark.parametrize(("age", "slept"), [(-300, 40), (300, 40), (4000, 0)])
def test_the_clocks_of_two_hosts_may_differ(tmp_path, age, slept):
    watch = Watch()
    put(elsewhere(watch.now - age), tmp_path)
    with watch.claimed(tmp_path):
        assert watch.slept == slept


def test_a_directory_in_a_bucket_is_claimed_alike(bucket):
    path = f"{bucket.directory}/{NAME}"
    with claimed(bucket.directory) as claim:
        claim.check()
        with pytest.raises(
            RuntimeError, match=rf"^{bucket.directory} is being trained by process {os.getpid()} \(this"
        ):
            claimed(bucket.directory).__enter__()
        elsewhere().write(path)
        with pytest.raises(RuntimeError, match=f"^{bucket.directory} was taken over by another training, in process 7"):
            claim.check()
    assert Holder.read(path) is not None  # of another
    buckets.remove(path)
    with claimed(bucket.directory):
        assert Holder.read(path).is_alive()
    assert Holder.read(path) is None


# Real processes.

PROGRAM = """
import sys, time
import jaxspec as js
from tiny_models import counting_init, counting_input, counting_model_fn, run_config
def slow():
    for batch in counting_input()():
        print("batch", flush=True)
        yield batch
        time.sleep(0.05)
js.TPUEstimator(counting_model_fn, counting_init, model_dir=sys.argv[1], config=run_config(save=2, every=2, num_shards=1),
    train_batch_size=4).train(slow, max_steps=100_000)
"""


@pytest.mark.slow(reason="another process trains, and is killed")
def test_a_trainer_keeps_others_out_until_it_is_killed_and_then_lets_them_in_at_once(tmp_path, caplog):
    with subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout.readline() == b"batch\n"
            with pytest.raises(RuntimeError, match=f"is being trained by process {other.pid} on host"):
                counting(tmp_path).train(counting_input(), steps=2)
            other.send_signal(signal.SIGSTOP)
            with pytest.raises(RuntimeError, match=f"is being trained by process {other.pid} on host"):
                counting(tmp_path).train(counting_input(), steps=2)
        finally:
            other.kill()
    counting(tmp_path).train(counting_input(), steps=2)
    assert "it is taken over" in caplog.text
    assert "it shows within" not in caplog.text  # nothing was waited for
    assert not (tmp_path / NAME).exists()
