"""An export as a SavedModel. `make test-savedmodel` runs this where TensorFlow is."""

import numpy as np
import pytest
from exports import ROWS, receiver_fn, shape, trained

import jaxspec as js
from jaxspec.export import PredictOutput, load, write_tensorflow_saved_model

tf = pytest.importorskip("tensorflow", reason="`make test-savedmodel` installs it")
pytestmark = pytest.mark.filterwarnings("default")  # TensorFlow's own


def outputs(logits, features):
    return {"serving_default": PredictOutput({"class": logits.argmax(-1)}), "logits": PredictOutput(logits)}


@pytest.mark.parametrize("sizes", [None, [8]])
def test_tensorflow_loads_and_runs_it(tmp_path, sizes):
    estimator = trained(tmp_path / "model", outputs=outputs)
    path = estimator.export_saved_model(tmp_path / "x", receiver_fn(), batch_sizes=sizes)
    write_tensorflow_saved_model(path, tmp_path / "saved")
    saved, ours = tf.saved_model.load(str(tmp_path / "saved")), load(path)
    for rows in (8,) if sizes else (1, 8, 24):
        got = saved.signatures["serving_default"](x=tf.constant(ROWS[:rows]))
        np.testing.assert_array_equal(got["class"].numpy(), ours(x=ROWS[:rows])["class"])
        got = saved.signatures["logits"](x=tf.constant(ROWS[:rows]))
        np.testing.assert_allclose(got["output"].numpy(), ours.signatures["logits"](x=ROWS[:rows])["output"], rtol=1e-5)


def test_open_dimensions(tmp_path):
    def features(tensors):
        return {"x": (tensors["x"] * tensors["mask"][..., None]).sum(1)}

    estimator = trained(tmp_path / "model", outputs=outputs)
    receiver = receiver_fn(features, x=shape("length", 4), mask=shape("length"))
    path = estimator.export_saved_model(tmp_path / "x", receiver)
    write_tensorflow_saved_model(path, tmp_path / "saved")
    arrays = {"x": np.stack([ROWS[:6]] * 2), "mask": np.ones((2, 6), np.float32)}
    got = tf.saved_model.load(str(tmp_path / "saved")).signatures["serving_default"](
        **{name: tf.constant(array) for name, array in arrays.items()}
    )
    np.testing.assert_array_equal(got["class"].numpy(), load(path)(**arrays)["class"])


def test_several_batch_sizes_are_refused(tmp_path):
    path = trained(tmp_path / "model").export_saved_model(tmp_path / "x", receiver_fn(), batch_sizes=[1, 8])
    with pytest.raises(ValueError, match=r"'serving_default' of .* has a program for each of the batch sizes \[1, 8\]"):
        js.export.write_tensorflow_saved_model(path, tmp_path / "saved")


def test_names_that_tensorflow_cannot_give_are_refused(tmp_path):
    receiver = receiver_fn(lambda tensors: {"x": tensors["x-1"]}, **{"x-1": shape(4)})
    path = trained(tmp_path / "model").export_saved_model(tmp_path / "x", receiver)
    with pytest.raises(ValueError, match=r"takes \['x-1'\], and arguments of TensorFlow have names of letters, digits"):
        js.export.write_tensorflow_saved_model(path, tmp_path / "saved")
