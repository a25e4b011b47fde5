"""A damaged checkpoint is noticed and named, and the one before it is used."""

import os
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_states import restored, saved, state_of
from tiny_models import assert_trees_equal, counting_init, counting_input, counting_model_fn, run_config

import jaxspec as js
from jaxspec._src.checkpoint import backend, checksums, parts
from jaxspec._src.checkpoint.latest import latest_undamaged_checkpoint
from jaxspec.checkpoint import DamagedCheckpointError, read_array


def _cut(file):
    os.truncate(file, file.stat().st_size // 2)


def _zero(file):
    file.write_bytes(bytes(file.stat().st_size))


def _flip(file):
    data = bytearray(file.read_bytes() or b"x")  # orbax has an empty file, too
    data[len(data) // 2] ^= 0x40
    file.write_bytes(data)


def _files(path):
    return sorted(file for file in pathlib.Path(path).rglob("*") if file.is_file())


def test_each_damage_to_each_file_is_named_and_the_checkpoint_before_is_found(tmp_path, caplog):
    state = state_of({"w": jnp.arange(4.0), "v": jnp.ones((2, 2))}, step=2)
    first = saved(tmp_path, state_of({"w": jnp.zeros(4), "v": jnp.ones((2, 2))}, step=1))
    path = saved(tmp_path, state)
    assert latest_undamaged_checkpoint(str(tmp_path)) == path
    damages, good = 0, tmp_path / "good"
    shutil.copytree(path, good)
    for number, _ in enumerate(_files(good)):
        for damage in (_cut, _zero, _flip, os.remove):
            shutil.rmtree(path)
            shutil.copytree(good, path)
            file = _files(path)[number]
            before = file.read_bytes()
            damage(file)
            if file.exists() and file.read_bytes() == before:
                continue  # an empty file has nothing to cut
            damages += 1
            caplog.clear()
            assert latest_undamaged_checkpoint(str(tmp_path)) == first, (file, damage)
            [warning] = caplog.messages
            assert path in warning
            assert "is damaged: " in warning
            with pytest.raises(DamagedCheckpointError, match="model.ckpt-2 is damaged"):
                restored(path, state)
    assert damages > 20


def _empty(path):
    shutil.rmtree(path)
    os.makedirs(path)


def _misnamed(path):
    os.rename(path, path.removesuffix("3") + "9")


def _no_directory(path):
    shutil.rmtree(path)
    pathlib.Path(path).write_text("")


def _without_variables(path):
    shutil.rmtree(os.path.join(path, "variables"))


@pytest.mark.parametrize("damage", [_empty, _misnamed, _no_directory, _without_variables])
def test_every_verb_names_a_damaged_newest_checkpoint_and_uses_the_one_before(damage, tmp_path, caplog):
    def make():
        return js.TPUEstimator(
            counting_model_fn,
            counting_init,
            model_dir=tmp_path,
            use_tpu=False,
            config=run_config(save=1),
        )

    make().train(counting_input(), steps=3)
    damage(str(tmp_path / "model.ckpt-3"))

    caplog.clear()
    assert make().get_variable_value("params/w") == 2
    [warning] = caplog.messages
    name = "model.ckpt-9" if damage is _misnamed else "model.ckpt-3"
    assert warning.startswith(f"the checkpoint {tmp_path / name} is damaged: ")
    assert "Remove it" in warning
    estimator = make()
    assert estimator.evaluate(counting_input(1))["global_step"] == 2
    assert [row["w"] for row in estimator.predict(counting_input(1))] == [2.0] * 4
    if damage is not _no_directory:
        with pytest.raises(DamagedCheckpointError, match=name):
            estimator.evaluate(counting_input(1), checkpoint_path=str(tmp_path / name))
    if damage is _empty:
        estimator.train(counting_input(), max_steps=4)
        assert estimator.get_variable_value("params/w") == 4
        assert latest_undamaged_checkpoint(str(tmp_path)) == str(tmp_path / "model.ckpt-4")
        assert read_array(str(tmp_path / "model.ckpt-3"), "params/w") == 3


def test_where_every_checkpoint_is_damaged_training_does_not_begin_anew_in_silence(tmp_path):
    for step in (1, 2):
        os.remove(os.path.join(saved(tmp_path, state_of({"w": jnp.zeros(())}, step=step)), "manifest.json"))
    with pytest.raises(DamagedCheckpointError, match=r"model.ckpt-2 is damaged: its manifest.json cannot be read"):
        latest_undamaged_checkpoint(str(tmp_path))
    assert latest_undamaged_checkpoint(str(tmp_path / "nowhere")) is None


def test_a_checkpoint_of_a_newer_format_is_refused_and_not_skipped(tmp_path, monkeypatch):
    def make():
        return js.TPUEstimator(
            counting_model_fn, counting_init, model_dir=tmp_path, use_tpu=False, config=run_config(save=1)
        )

    make().train(counting_input(), steps=1)
    monkeypatch.setattr(parts, "FORMAT", 3)
    make().train(counting_input(), steps=1)
    monkeypatch.undo()
    match = r"model.ckpt-2 has format 3: a newer version of jaxspec wrote it, and this version reads formats up to 2\. "
    for use in (
        lambda: make().train(counting_input(), steps=1),
        lambda: make().evaluate(counting_input(1)),
        lambda: read_array(str(tmp_path / "model.ckpt-2"), "params/w"),
    ):
        with pytest.raises(ValueError, match=match + "Install the newer version, or use another model_dir"):
            use()
    assert make().evaluate(counting_input(1), checkpoint_path=str(tmp_path / "model.ckpt-1"))["global_step"] == 1


def test_a_checkpoint_removed_at_any_stage_of_reading_is_a_file_not_found_error_that_names_it(tmp_path, monkeypatch):
    state = state_of({"w": jnp.arange(4.0)})
    for module, function in ((checksums, "verify"), (backend, "shapes"), (backend, "load")):
        path = saved(tmp_path, state)
        original = getattr(module, function)
        for when in ("before", "after"):
            saved(tmp_path, state)

            def removing(*args, original=original, when=when, path=path):
                if when == "before":
                    shutil.rmtree(path)
                result = original(*args)
                shutil.rmtree(path, ignore_errors=True)
                return result

            monkeypatch.setattr(module, function, removing)
            with pytest.raises(FileNotFoundError, match="model.ckpt-1"):
                restored(path, state)
            monkeypatch.setattr(module, function, original)
    with pytest.raises(FileNotFoundError, match="model.ckpt-1"):
        js.checkpoint.checkpoint_step(path)
    assert_trees_equal(restored(saved(tmp_path, state), state), state)
    np.testing.assert_array_equal(read_array(path, "params/w"), np.arange(4.0))
