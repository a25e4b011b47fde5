"""A model_dir that cannot be used is an error that says what to do, before much is trained in vain."""

import errno
import os
import threading

import pytest
from tiny_models import counting_init, counting_input, counting_model_fn, run_config

import jaxspec as js
from jaxspec._src.checkpoint import background_write


def estimator(model_dir, save=1000):
    return js.TPUEstimator(
        counting_model_fn, counting_init, model_dir=model_dir, use_tpu=False, config=run_config(save=save)
    )


@pytest.mark.parametrize("below", ["", "run", "run/1"])
def test_a_model_dir_that_is_a_file_or_lies_in_one_is_refused(below, tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    path = file / below
    match = f"model_dir is {path}, but {file} is a file. Name a directory, or a path where one can be made"
    with pytest.raises(NotADirectoryError, match=match):
        estimator(path)
    with pytest.raises(NotADirectoryError, match=match):
        js.TPUEstimator(counting_model_fn, counting_init, config=js.RunConfig(model_dir=str(path)))
    assert file.read_text() == "mine"


class WaitsForWriting(js.hooks.SessionRunHook):
    """Waits after each loop until no checkpoint is being written."""

    def after_run(self, run_context, run_values):
        for thread in threading.enumerate():
            if thread.name == "jaxspec-checkpoint":
                thread.join(60)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_checkpoint_that_cannot_be_written_ends_training_at_the_next_loop_and_not_when_another_is_due(
    number, tmp_path, monkeypatch
):
    def refuse(path, step):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(background_write.checksums, "write_manifest", refuse)
    made = estimator(tmp_path)
    match = (
        f"model.ckpt-0 could not be written: {os.strerror(number)}. The state is still in memory.*make room or repair"
    )
    with pytest.raises(OSError, match=match) as caught:
        made.train(counting_input(), steps=900, hooks=[WaitsForWriting()])
    assert caught.value.errno == number
    assert made.get_variable_value("params/w") == 1  # the first loop
    monkeypatch.undo()
    made.train(counting_input(), max_steps=4)
    assert js.load_global_step(tmp_path) == 4
