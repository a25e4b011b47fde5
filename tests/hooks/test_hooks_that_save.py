"""A hook of the user's own that writes checkpoints: it says so by `start_saving`."""

import os

import pytest
from tiny_models import counting_init, counting_input, counting_model_fn, run_config

import jaxspec as js


class Saving(js.hooks.SessionRunHook):
    """Writes one checkpoint, at the end."""

    def __init__(self, directory=None):
        self.directory, self.listeners = directory, None

    def start_saving(self, model_dir, listeners):
        self.listeners = listeners
        return self.directory or model_dir

    def end(self, session):
        session.save_checkpoint(self.directory or session.summary_writer.logdir)


class Plain(js.hooks.SessionRunHook):
    """Writes none."""


def make_estimator(model_dir, save):
    return js.TPUEstimator(
        counting_model_fn, counting_init, model_dir=model_dir, config=run_config(save), train_batch_size=4
    )


def checkpoints(directory):
    return sorted(name for name in os.listdir(directory) if name.startswith("model.ckpt"))


def test_it_replaces_the_saver_of_training(tmp_path):
    make_estimator(tmp_path, save=2).train(counting_input(), steps=5, hooks=[Plain(), Saving()])
    assert checkpoints(tmp_path) == ["model.ckpt-5"]


def test_the_first_one_gets_the_listeners(tmp_path):
    first, second = Saving(), Saving(str(tmp_path / "other"))
    listener = js.hooks.CheckpointSaverListener()
    make_estimator(tmp_path, save=None).train(
        counting_input(), steps=1, hooks=[Plain(), first, second], saving_listeners=[listener]
    )
    assert (first.listeners, second.listeners) == ((listener,), ())
    assert checkpoints(tmp_path) == checkpoints(tmp_path / "other") == ["model.ckpt-1"]


def test_without_one_listeners_need_checkpoints(tmp_path):
    with pytest.raises(ValueError, match="There should be a CheckpointSaverHook to use saving_listeners"):
        make_estimator(tmp_path, save=None).train(
            counting_input(), steps=1, hooks=[Plain()], saving_listeners=[js.hooks.CheckpointSaverListener()]
        )


def test_a_wrong_signature_is_refused_before_anything_compiles(tmp_path):
    class Wrong(js.hooks.SessionRunHook):
        def start_saving(self):
            pass

    with pytest.raises(
        TypeError, match=r"Wrong.start_saving has a wrong signature.*write def start_saving\(self, model_dir"
    ):
        make_estimator(tmp_path, save=1).train(lambda: pytest.fail("was called"), steps=1, hooks=[Wrong()])
