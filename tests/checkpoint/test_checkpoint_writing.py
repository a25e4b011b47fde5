"""A checkpoint is whole or absent, whoever interrupts, reads or writes meanwhile, and whatever the disk does."""

import _thread
import fcntl
import os
import shutil
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_states import restored, saved, state_of
from tiny_models import assert_trees_equal, counting_init, counting_input, counting_model_fn, run_config

import jaxspec as js
import jaxspec._src.checkpoint.saver as saver_module
from jaxspec._src.checkpoint import backend, background_write, removal
from jaxspec._src.checkpoint.latest import latest_undamaged_checkpoint
from jaxspec._src.checkpoint.saver import Saver
from jaxspec._src.device.processes import Alone
from jaxspec.checkpoint import latest_checkpoint, read_array


def _state(step, value=None):
    return state_of({"w": jnp.full((3,), float(step if value is None else value))}, step=step)


def test_threads_that_save_and_read_at_once_do_not_disturb_each_other(tmp_path):
    teacher = saved(tmp_path / "teacher", _state(5))
    errors, stop, reads = [], threading.Event(), []

    def read():
        while not stop.is_set():
            reads.append(float(read_array(teacher, "params/w")[0]))

    def save(name):
        saver = Saver(str(tmp_path / name), keep_max=None)
        for step in range(8):
            saver.save(_state(step))
        saver.wait()

    def guarded(job, *args):
        try:
            job(*args)
        except BaseException as error:
            errors.append(error)

    readers = [threading.Thread(target=guarded, args=(read,)) for _ in range(2)]
    writers = [threading.Thread(target=guarded, args=(save, name)) for name in ("a", "b")]
    for thread in (*readers, *writers):
        thread.start()
    for thread in writers:
        thread.join(100)
    stop.set()
    for thread in readers:
        thread.join(100)
    assert not errors
    assert set(reads) == {5.0}
    for name in ("a", "b"):
        for step in range(8):
            path = str(tmp_path / name / f"model.ckpt-{step}")
            assert_trees_equal(restored(path, _state(step)), _state(step))


def test_an_interrupt_while_waiting_leaves_the_write_alone_and_the_next_call_waits_for_it(tmp_path, monkeypatch):
    going_on, writes = threading.Event(), []
    original = background_write.checksums.write_manifest

    def slow(path, step):
        writes.append(step)
        assert going_on.wait(60)
        original(path, step)

    monkeypatch.setattr(background_write.checksums, "write_manifest", slow)
    saver = Saver(str(tmp_path))
    saver.save(_state(1))
    wait = threading.Event.wait
    for call in (saver.wait, lambda: saver.save(_state(1)), lambda: saver.save(_state(2))):

        def interrupted(event, timeout=None):
            if timeout is None and threading.current_thread() is threading.main_thread():
                raise KeyboardInterrupt
            return wait(event, timeout)

        monkeypatch.setattr(threading.Event, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            call()
        monkeypatch.setattr(threading.Event, "wait", wait)
    assert latest_checkpoint(str(tmp_path)) is None
    going_on.set()
    saver.save(_state(1))
    saver.wait()
    assert writes == [1]
    assert latest_undamaged_checkpoint(str(tmp_path)) == str(tmp_path / "model.ckpt-1")
    assert os.listdir(tmp_path) == ["model.ckpt-1"]


def test_a_write_whose_beginning_was_interrupted_is_done_once_by_whoever_waits(tmp_path, monkeypatch):
    steps, original = [], background_write.checksums.write_manifest
    monkeypatch.setattr(
        background_write.checksums, "write_manifest", lambda path, step: (steps.append(step), original(path, step))
    )
    write = background_write.BackgroundWrite(str(tmp_path / "model.ckpt-1"), 1, {"variables": {"w": np.ones(3)}}, "new")
    assert write.wait()
    write.begin()
    assert write.wait()
    assert steps == [1]


def test_an_interrupt_at_any_moment_of_saving_leaves_the_checkpoint_whole_or_absent(tmp_path, monkeypatch):
    """The interrupt comes at each call that save makes in the caller's thread, one after the other."""
    moments = ("check_names", "BackgroundWrite", "_are_good")
    for number, name in enumerate(moments):
        saver = Saver(str(tmp_path / str(number)))
        original = getattr(saver_module, name)

        def interrupted(*args, original=original):
            original(*args)
            raise KeyboardInterrupt

        monkeypatch.setattr(saver_module, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            saver.save(_state(1))
        monkeypatch.setattr(saver_module, name, original)
        saver.save(_state(1))
        saver.wait()
        path = str(tmp_path / str(number) / "model.ckpt-1")
        assert_trees_equal(restored(path, _state(1)), _state(1))


def test_an_interrupted_read_lets_no_other_operation_begin_before_it_has_ended(tmp_path, monkeypatch):
    import orbax.checkpoint.experimental.v1 as ocp

    path = saved(tmp_path, _state(1))
    going_on, original = threading.Event(), ocp.load_checkpointables

    def slow(*args):
        _thread.interrupt_main()
        assert going_on.wait(60)
        return original(*args)

    monkeypatch.setattr(ocp, "load_checkpointables", slow)
    with pytest.raises(KeyboardInterrupt):
        backend.load(path, {"meta": None})
    monkeypatch.setattr(ocp, "load_checkpointables", original)
    assert backend._one_at_a_time.locked()
    going_on.set()
    assert_trees_equal(restored(path, _state(1)), _state(1))
    assert not backend._one_at_a_time.locked()


def test_where_there_are_no_locks_leftovers_are_recognised_by_their_age(tmp_path, monkeypatch):
    monkeypatch.setattr(removal, "fcntl", None)
    old, new = tmp_path / "model.ckpt-1.partial-a", tmp_path / "model.ckpt-2.partial-b"
    for path in (old, new):
        path.mkdir()
    os.utime(old, (0, 0))
    path = saved(tmp_path, _state(3))
    removal.remove_leftovers(str(tmp_path))
    assert set(os.listdir(tmp_path)) == {new.name, os.path.basename(path)}


def test_leftovers_of_killed_runs_are_removed_at_the_next_start_and_what_is_being_written_stays(tmp_path):
    for name in ("model.ckpt-0.removed", "model.ckpt-7.partial-abc", "model.ckpt-8.orbax-checkpoint-tmp"):
        (tmp_path / name / "variables").mkdir(parents=True)
    living, mine = tmp_path / "model.ckpt-9.partial-other", tmp_path / "model.ckpt-9.copy"
    living.mkdir()
    mine.mkdir()
    held = os.open(living, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    estimator = js.TPUEstimator(
        counting_model_fn,
        counting_init,
        model_dir=tmp_path,
        use_tpu=False,
        config=run_config(save=1, keep_checkpoint_max=1),
    )
    estimator.train(counting_input(), steps=3)
    assert sorted(name for name in os.listdir(tmp_path) if name.startswith("model")) == [
        "model.ckpt-3",
        "model.ckpt-9.copy",
        "model.ckpt-9.partial-other",
    ]
    os.close(held)


def test_a_clean_up_that_fails_is_a_warning(tmp_path, monkeypatch, caplog):
    (tmp_path / "model.ckpt-7.removed-x").mkdir()

    def refuse(path, **kwargs):
        if not kwargs:
            raise PermissionError(1, "not yours", path)

    monkeypatch.setattr(removal.shutil, "rmtree", refuse)
    saver = Saver(str(tmp_path), keep_max=1)
    saver.begin(None, Alone())
    for step in (1, 2):
        saver.save(_state(step))
    saver.wait()
    left, old = caplog.messages
    assert left.startswith(f"{tmp_path / 'model.ckpt-7.removed-x'} could not be removed: ")
    assert old.startswith(f"{tmp_path / 'model.ckpt-1.removed-'}")
    assert left.endswith("remove it by hand.")
    assert js.checkpoint.latest_checkpoint(str(tmp_path)) == str(tmp_path / "model.ckpt-2")


def test_the_old_are_removed_in_the_background_when_the_new_one_is_in_its_place(tmp_path, monkeypatch):
    removed = []

    def remove(path):
        removed.append((os.path.basename(path), threading.current_thread().name))
        assert latest_undamaged_checkpoint(str(tmp_path)) == str(tmp_path / "model.ckpt-2")
        original(path)

    original = saver_module.remove_checkpoint
    monkeypatch.setattr(saver_module, "remove_checkpoint", remove)
    saver = Saver(str(tmp_path), keep_max=1)
    for step in (1, 2):
        saver.save(_state(step))
    saver.wait()
    assert removed == [("model.ckpt-1", "jaxspec-checkpoint")]
    assert os.listdir(tmp_path) == ["model.ckpt-2"]


def test_one_that_cannot_be_marked_as_kept_stays_with_a_warning(tmp_path, monkeypatch, caplog):
    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saver_module, "write_file", full)
    saver = Saver(str(tmp_path), keep_max=1, keep_every_n_hours=0)
    for step in (1, 2):
        saver.save(_state(step))
    saver.wait()
    (warning,) = caplog.messages
    assert warning.startswith(f"{tmp_path}: old checkpoints could not be removed: ")
    assert sorted(os.listdir(tmp_path)) == ["model.ckpt-1", "model.ckpt-2"]


def test_the_caller_waits_for_the_copy_and_not_for_orbax(tmp_path, monkeypatch):
    going_on, original = threading.Event(), backend.save

    def slow(*args):
        assert going_on.wait(60)
        original(*args)

    monkeypatch.setattr(background_write.backend, "save", slow)
    saver, state = Saver(str(tmp_path)), _state(1)
    saver.save(state)
    add_one = jax.jit(lambda variables: jax.tree.map(lambda x: x + 1, variables), donate_argnums=0)
    assert add_one(state.variables)["params"]["w"].tolist() == [2.0] * 3
    going_on.set()
    saver.wait()
    assert_trees_equal(restored(str(tmp_path / "model.ckpt-1"), _state(1)), _state(1))


def test_a_directory_that_vanishes_while_a_checkpoint_is_written_is_one_short_error_and_saving_goes_on(
    tmp_path, monkeypatch
):
    gone = tmp_path / "run"
    original = background_write.checksums.write_manifest

    def vanishing(path, step):
        shutil.rmtree(gone)
        original(path, step)

    saver = Saver(str(gone))
    monkeypatch.setattr(background_write.checksums, "write_manifest", vanishing)
    saver.save(_state(1))
    with pytest.raises(OSError, match=r"model.ckpt-1 could not be written: its directory does not exist") as caught:
        saver.wait()
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.__cause__ is None
    saver.wait()  # the error is raised once
    monkeypatch.setattr(background_write.checksums, "write_manifest", original)
    saver.save(_state(1))
    saver.wait()
    assert latest_undamaged_checkpoint(str(gone)) == str(gone / "model.ckpt-1")


def test_a_directory_that_cannot_be_made_is_one_short_error(tmp_path):
    (tmp_path / "file").write_text("")
    saver = Saver(str(tmp_path / "file" / "run"))
    saver.save(_state(1))
    with pytest.raises(OSError, match=r"run/model.ckpt-1 could not be written: ") as caught:
        saver.wait()
    assert len(str(caught.value).splitlines()) == 1


_FULL = """
import resource, signal, sys, jax, jax.numpy as jnp, traceback
sys.path.insert(0, sys.argv[2])
from checkpoint_states import state_of
from jaxspec._src.checkpoint.latest import latest_undamaged_checkpoint
from jaxspec._src.checkpoint.saver import Saver
from jaxspec._src.device.processes import Alone
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
saver = Saver(sys.argv[1])
state = state_of({"w": jax.random.normal(jax.random.key(0), (1 << 18,))})
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))
saver.save(state)
try:
    saver.wait()
except OSError:
    print(traceback.format_exc())
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
if len(sys.argv) > 3:
    saver.save(state)
    saver.wait()
    print("whole", latest_undamaged_checkpoint(sys.argv[1]))
"""


@pytest.mark.parametrize("again", [True, False])
def test_a_disk_without_room_is_one_short_error_a_later_save_works_and_the_process_ends(again, tmp_path):
    began = time.monotonic()
    here = os.path.dirname(__file__)
    command = [sys.executable, "-c", _FULL, str(tmp_path), here, *(["again"] if again else [])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    out = done.stdout
    assert "model.ckpt-1 could not be written: " in out
    assert len((out + done.stderr).splitlines()) < 30
    assert ("whole" in out) == again
    assert os.listdir(tmp_path) == (["model.ckpt-1"] if again else [])
    assert time.monotonic() - began < 100


def test_training_goes_on_from_the_state_in_memory_when_there_is_room_again(tmp_path, monkeypatch):
    estimator = js.TPUEstimator(
        counting_model_fn, counting_init, model_dir=tmp_path, use_tpu=False, config=run_config(save=2)
    )
    original, full = background_write.checksums.write_manifest, [True]

    def write(path, step):
        if full[0]:
            raise OSError(28, "No space left on device")
        original(path, step)

    monkeypatch.setattr(background_write.checksums, "write_manifest", write)
    with pytest.raises(
        OSError, match=r"model.ckpt-0 could not be written: No space left on device. The state is still in"
    ):
        estimator.train(counting_input(), steps=3)
    reached = estimator.get_variable_value("params/w")
    assert 1 <= reached <= 2  # the end of the next loop, at the latest when the second checkpoint was due
    full[0] = False
    estimator.train(counting_input(), max_steps=5)
    assert read_array(estimator.latest_checkpoint(), "params/w") == 5
