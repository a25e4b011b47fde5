"""Checkpoints in a bucket, which has no directories and no renaming: whole or absent, as on a disk."""

import jax
import jax.numpy as jnp
import pytest
from bucket_servers import BUSY, NO_ACCESS
from checkpoint_states import restored, saved, state_of
from tiny_models import assert_trees_equal

import jaxspec as js
from jaxspec._src.base import buckets
from jaxspec._src.checkpoint import backend, removal
from jaxspec._src.checkpoint.latest import latest_undamaged_checkpoint
from jaxspec._src.checkpoint.saver import Saver
from jaxspec.checkpoint import array_names, checkpoint_steps, latest_checkpoint, read_array


def _state(step, value=None, size=3):
    return state_of({"w": jnp.full((size,), float(step if value is None else value)), "none": jnp.zeros(0)}, step=step)


def test_a_checkpoint_in_a_bucket_gives_back_what_was_saved(bucket):
    path = saved(bucket.directory, _state(5))
    assert path == f"{bucket.directory}/model.ckpt-5"
    assert latest_checkpoint(bucket.directory) == path == latest_undamaged_checkpoint(bucket.directory)
    assert checkpoint_steps(bucket.directory) == [5]
    assert js.load_global_step(bucket.directory) == 5
    assert_trees_equal(restored(path, _state(5)), _state(5))
    assert array_names(path)["params/w"] == jax.ShapeDtypeStruct((3,), jnp.float32)
    assert read_array(f"{path}/", "params/w").tolist() == [5, 5, 5]
    assert next(js.checkpoints_iterator(bucket.directory, timeout=0)) == path


def test_a_directory_in_a_bucket_that_does_not_exist_has_no_checkpoints(bucket):
    assert checkpoint_steps(bucket.directory) == []
    assert latest_undamaged_checkpoint(bucket.directory) is None
    with pytest.raises(FileNotFoundError, match="model.ckpt-3"):
        array_names(f"{bucket.directory}/model.ckpt-3")


def test_what_has_no_manifest_is_no_checkpoint(bucket):
    saved(bucket.directory, _state(1))
    path = saved(bucket.directory, _state(2))
    buckets.remove(f"{path}/manifest.json")
    assert checkpoint_steps(bucket.directory) == [1]
    assert latest_undamaged_checkpoint(bucket.directory) == f"{bucket.directory}/model.ckpt-1"
    with pytest.raises(FileNotFoundError, match=r"not a valid checkpoint: .*model.ckpt-2. .*the steps there are \[1\]"):
        read_array(path, "params/w")


def test_a_checkpoint_whose_writing_broke_off_is_written_anew(bucket):
    path = saved(bucket.directory, _state(2, value=7))
    buckets.remove(f"{path}/manifest.json")
    buckets.write(f"{path}/variables/rest", b"of a killed process")
    assert saved(bucket.directory, _state(2)) == path
    assert_trees_equal(restored(path, _state(2)), _state(2))


def test_one_of_another_run_is_replaced(bucket, caplog):
    saved(bucket.directory, _state(2, value=7))
    path = saved(bucket.directory, _state(2))
    assert "is of another run; it is replaced" in caplog.text
    assert_trees_equal(restored(path, _state(2)), _state(2))


@pytest.mark.slow("seven checkpoints, each of some hundred requests")
def test_old_checkpoints_are_removed_and_some_are_kept_for_ever(bucket):
    seconds = iter(range(0, 10**6, 1000))
    saver = Saver(bucket.directory, keep_max=2, keep_every_n_hours=1, clock=lambda: next(seconds) + 2e9)
    for step in range(1, 8):
        saver.save(_state(step))
    saver.wait()
    steps = checkpoint_steps(bucket.directory)
    assert steps[-2:] == [6, 7]
    kept = steps[:-2]
    assert kept
    assert all(buckets.find(f"{bucket.directory}/model.ckpt-{step}/kept") for step in kept)
    names = {name.split("/")[0] for name in buckets.objects_under(bucket.directory)}
    assert names == {f"model.ckpt-{step}" for step in steps}
    assert_trees_equal(restored(f"{bucket.directory}/model.ckpt-{kept[0]}", _state(kept[0])), _state(kept[0]))


def test_the_rest_of_a_killed_process_is_removed_after_a_day_and_what_is_being_written_stays(bucket, monkeypatch):
    path = saved(bucket.directory, _state(1))
    for name in ("model.ckpt-2/variables/d/part", "model.ckpt-3.mine/part", "events.out"):
        buckets.write(f"{bucket.directory}/{name}", b"x")
    removal.remove_leftovers(bucket.directory)
    assert buckets.find(f"{bucket.directory}/model.ckpt-2/variables/d/part")
    monkeypatch.setattr(removal, "_LEFT_OVER_AFTER_SECS", -10)
    removal.remove_leftovers(bucket.directory)
    names = {name.split("/")[0] for name in buckets.objects_under(bucket.directory)}
    assert names == {"model.ckpt-1", "model.ckpt-3.mine", "events.out"}
    assert_trees_equal(restored(path, _state(1)), _state(1))


def test_an_object_that_was_replaced_or_removed_is_noticed(bucket, caplog):
    saved(bucket.directory, _state(1))
    path = saved(bucket.directory, _state(2, size=1000))
    name = next(name for name in buckets.objects_under(path) if name.startswith("variables/"))
    data = bytearray(buckets.read(f"{path}/{name}"))
    data[len(data) // 2] ^= 1
    buckets.write(f"{path}/{name}", bytes(data))
    with pytest.raises(js.checkpoint.DamagedCheckpointError, match="has other bytes than were written"):
        restored(path, _state(2, size=1000))
    assert latest_undamaged_checkpoint(bucket.directory) == f"{bucket.directory}/model.ckpt-1"
    assert f"{path} is damaged" in caplog.text
    buckets.remove(f"{path}/{name}")
    with pytest.raises(js.checkpoint.DamagedCheckpointError, match=f"the file {name} is missing"):
        restored(path, _state(2, size=1000))


def test_a_checkpoint_that_is_removed_while_it_is_read_is_missing(bucket, monkeypatch):
    path, shapes = saved(bucket.directory, _state(1)), backend.shapes

    def removing(read_from):
        removal.remove_checkpoint(path)
        return shapes(read_from)

    monkeypatch.setattr(backend, "shapes", removing)
    with pytest.raises(FileNotFoundError, match=f"{path}"):
        restored(path, _state(1))


def test_no_byte_of_a_checkpoint_is_downloaded_twice(bucket):
    state = state_of({"w": jax.random.normal(jax.random.key(0), (100_000,))})
    path = saved(bucket.directory, state)
    bucket.requests.clear()
    assert latest_undamaged_checkpoint(bucket.directory) == path
    (data,) = [name for name, file in buckets.objects_under(path).items() if file.size > 2**17]
    digest = data.rpartition("/")[2]
    assert not [request for request in bucket.requests if request[0] == "GET" and digest in request[1]]
    assert_trees_equal(restored(path, state), state)
    assert len([request for request in bucket.requests if request[0] == "GET" and digest in request[1]]) == 1


def test_a_checkpoint_copied_to_a_disk_is_whole_there(bucket, tmp_path):
    path = saved(bucket.directory, _state(1))
    (tmp_path / "model.ckpt-1").mkdir()
    buckets.download(path, str(tmp_path / "model.ckpt-1"))
    assert latest_undamaged_checkpoint(str(tmp_path)) == str(tmp_path / "model.ckpt-1")
    assert_trees_equal(restored(str(tmp_path / "model.ckpt-1"), _state(1)), _state(1))


def test_a_bucket_that_does_not_exist_is_an_error_that_names_it(bucket):
    directory = f"{bucket.scheme}://no-such-bucket/run"
    with pytest.raises(FileNotFoundError, match=f"there is no such bucket.*'{directory}'"):
        latest_checkpoint(directory)
    with pytest.raises(FileNotFoundError, match=f"there is no such bucket.*'{directory}'"):
        saved(directory, _state(1))


# orbax gives up at the first refusal, and leaves the other requests to tensorstore, whose answers then find no one.
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
def test_a_refused_permission_is_an_error_that_names_the_path(bucket):
    path = saved(bucket.directory, _state(1))
    bucket.fail(NO_ACCESS[bucket.scheme])
    with pytest.raises(PermissionError, match=f"(Forbidden|no access for you).*'{path}/manifest.json'"):
        restored(path, _state(1))
    with pytest.raises(PermissionError, match=f"no access for you.*{bucket.directory}"):
        latest_checkpoint(bucket.directory)
    saver = Saver(bucket.directory)
    bucket.works_again()
    bucket.fail(NO_ACCESS[bucket.scheme], methods=("POST", "PUT"))
    saver.save(_state(2))
    with pytest.raises(
        PermissionError, match=f"{bucket.directory}/model.ckpt-2 could not be written: .*(Forbidden|no access)"
    ):
        saver.wait()
    bucket.works_again()
    assert checkpoint_steps(bucket.directory) == [1]
    saver.save(_state(2))
    saver.wait()
    assert checkpoint_steps(bucket.directory) == [1, 2]


@pytest.mark.slow("the libraries wait longer before each repetition")
def test_requests_that_fail_and_then_work_are_repeated(bucket):
    bucket.fail(BUSY[bucket.scheme], times=2, methods=("POST", "PUT"))
    bucket.fail(BUSY[bucket.scheme], times=2, methods=("GET",))
    path = saved(bucket.directory, _state(1))
    bucket.fail(BUSY[bucket.scheme], times=2, methods=("GET",))
    assert_trees_equal(restored(path, _state(1)), _state(1))
