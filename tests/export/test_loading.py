"""An export runs without the code of the model; what does not fit is refused."""

import concurrent.futures
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from exports import ROWS, predicted, receiver_fn, shape

import jaxspec as js
from jaxspec._src.base import buckets

ELSEWHERE = """
import importlib.abc, os, sys

REFUSED = ["flax", "optax", "orbax", "exports", "psutil", "tensorboardX", "jaxspec._src.run", "jaxspec._src.step",
           "jaxspec._src.checkpoint", "jaxspec._src.device", "jaxspec._src.data", "jaxspec._src.hooks"]

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if any(f"{name}.".startswith(f"{refused}.") for refused in REFUSED):
            raise ImportError(f"{name} is refused")

sys.meta_path.insert(0, Refuse())
import jax, numpy as np
import jaxspec as js

if len(sys.argv) > 3:
    js.TPUEstimator
loaded = js.export.load(sys.argv[1])
rows = np.load(sys.argv[2])
got = loaded(x=rows)
assert len(got["class"].devices()) == len(jax.devices()) == int(os.environ["DEVICES"])
np.savez(sys.argv[2] + ".out", **got)
"""


@pytest.fixture
def copy(exported, tmp_path):
    """A copy of the export, to be damaged."""
    return pathlib.Path(shutil.copytree(exported, tmp_path / "copy"))


def run_elsewhere(exported, tmp_path, *more, devices=1):
    """Loads and calls an export in a process that refuses to import the model's code."""
    np.save(tmp_path / "rows.npy", ROWS)
    env = {
        "PYTHONPATH": str(pathlib.Path(js.__file__).parents[1]),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "DEVICES": str(devices),
    }
    command = [sys.executable, "-c", ELSEWHERE, str(exported), str(tmp_path / "rows.npy"), *more]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, cwd=tmp_path)


@pytest.mark.parametrize("devices", [1, 4])
def test_it_runs_where_the_code_of_the_model_is_not(estimator, exported, tmp_path, devices):
    done = run_elsewhere(exported, tmp_path, devices=devices)
    assert done.returncode == 0, done.stderr
    want = predicted(estimator, {"x": ROWS})
    with np.load(tmp_path / "rows.npy.out.npz") as got:
        np.testing.assert_array_equal(got["class"], want["class"])
        np.testing.assert_allclose(got["probabilities"], want["probabilities"], rtol=1e-6)


def test_the_test_above_can_fail(exported, tmp_path):
    assert "is refused" in run_elsewhere(exported, tmp_path, "and the estimator").stderr


def test_a_bucket(estimator, bucket):
    path = estimator.export_saved_model(f"{bucket.directory}/exports", receiver_fn())
    assert path.startswith(f"{bucket.directory}/exports/")
    np.testing.assert_array_equal(js.export.load(path)(x=ROWS)["class"], predicted(estimator, {"x": ROWS})["class"])
    buckets.remove(f"{path}/signature.json")
    with pytest.raises(FileNotFoundError, match="is no export: it holds no signature.json"):
        js.export.load(path)


# What is passed.


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, r"signature 'serving_default' takes x: float32\[batch,4\], got no array. Pass each by its name"),
        ({"x": ROWS, "y": ROWS}, r"takes x: float32\[batch,4\], got x, y"),
        ({"x": ROWS[0]}, r"'x' must be float32\[batch,4\], got float32\[4\]"),
        ({"x": ROWS[:, :3]}, r"'x' must be float32\[batch,4\], got float32\[24,3\]"),
        ({"x": ROWS[:0]}, r"'x' must be float32\[batch,4\], got float32\[0,4\]: batch is at least 1"),
        ({"x": ROWS.astype(np.complex64)}, r"got complex64\[24,4\]. Convert it: x.astype\('float32'\)"),
        ({"x": [["a", "b", "c", "d"]]}, r"got <U1\[1,4\]. An export takes numbers: parse strings and decode images"),
        ({"x": [[1.0, 2.0], [3.0]]}, r"'x' must be float32\[batch,4\], got list whose lengths differ"),
    ],
)
def test_wrong_arrays(exported, arrays, message):
    with pytest.raises(ValueError, match=message):
        js.export.load(exported)(**arrays)


def test_numbers_are_converted_within_their_kind(estimator, tmp_path):
    tensors = {"x": shape(4, dtype="uint8")}
    receiver = receiver_fn(lambda tensors: {"x": tensors["x"].astype("float32")}, **tensors)
    loaded = js.export.load(estimator.export_saved_model(tmp_path, receiver))
    want = loaded(x=np.full((4, 4), 7, np.uint8))["probabilities"]
    for x in (np.full((4, 4), 7), [[7] * 4] * 4, jax.numpy.full((4, 4), 7)):
        np.testing.assert_array_equal(loaded(x=x)["probabilities"], want)
    for x in (np.full((4, 4), 300), np.full((4, 4), -1), np.full((4, 4), 1.0)):
        with pytest.raises(ValueError, match=r"'x' must be uint8\[batch,4\], got .* Convert it: x.astype\('uint8'\)"):
            loaded(x=x)


# Where it runs.


@pytest.mark.parametrize("devices", [[], jax.devices()[:1] * 2, ["cpu"], "cpu"])
def test_wrong_devices(exported, devices):
    with pytest.raises(ValueError, match=r"devices must be devices of JAX, each of them once, got .*\[:1\]"):
        js.export.load(exported, devices=devices)


def test_calls_from_many_threads(estimator, exported):
    loaded = js.export.load(exported)
    rows = [np.roll(ROWS, i, axis=0)[: 1 + i % 9] for i in range(48)]
    with concurrent.futures.ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda x: loaded(x=x)["probabilities"], rows))
    want = predicted(estimator, {"x": ROWS})["probabilities"]
    for i, answer in enumerate(answers):
        np.testing.assert_allclose(answer, np.roll(want, i, axis=0)[: 1 + i % 9], rtol=1e-5)


# What is there.


@pytest.mark.parametrize(("path", "there"), [("nothing", "does not exist"), ("", "holds no signature.json")])
def test_no_export(tmp_path, path, there):
    with pytest.raises(FileNotFoundError, match=f"is no export: it {there}. Expected the path that export_saved_model"):
        js.export.load(tmp_path / path)


@pytest.mark.parametrize("name", ["weights.safetensors", "programs/0.jax"])
@pytest.mark.parametrize("damage", ["flipped", "short", "gone"])
def test_a_damaged_file(copy, name, damage):
    path = copy / name
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        data[-1] ^= 1
        path.write_bytes(data if damage == "flipped" else data[:-10])
    with pytest.raises(ValueError, match=rf"is damaged: \['{name}'\] are not as they were written. Export again"):
        js.export.load(copy)


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"format": 1}', '{"format": 1, "signatures": []}', '{"format": 1, "signatures": {}}']
)
def test_a_damaged_description(copy, text):
    (copy / "signature.json").write_text(text)
    with pytest.raises(ValueError, match="signature.json is damaged: .* Export the model again"):
        js.export.load(copy)


def changed(copy, **values):
    path = copy / "signature.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_newer_format(copy):
    changed(copy, format=2)
    with pytest.raises(
        ValueError, match="has format 2: a newer version of jaxspec wrote it, and this .* up to 1. Install"
    ):
        js.export.load(copy)


@pytest.mark.parametrize("version", [8, 99])
def test_past_the_window_of_jax_export(copy, version):
    changed(copy, calling_convention=version, written_by={"jax": "0.4.1"})
    message = (
        rf"this JAX \({jax.__version__}\) cannot read .* which JAX 0.4.1 wrote with version {version} of jax.export's "
        "calling convention; here versions 9 to 10 are supported. .* six months old.* or install jax==0.4.1"
    )
    with pytest.raises(ValueError, match=message):
        js.export.load(copy)


def test_a_program_that_jax_cannot_read(exported, monkeypatch):
    def refuse(data):
        raise NotImplementedError("version 77")

    monkeypatch.setattr("jax.export.deserialize", refuse)
    with pytest.raises(
        ValueError, match=r"cannot read the program programs/0.jax .* \(NotImplementedError: version 77\)"
    ):
        js.export.load(exported)


def test_without_tensorflow_there_is_no_saved_model(exported, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ImportError, match=r'needs TensorFlow. Run: pip install "jaxspec\[savedmodel\]"'):
        js.export.write_tensorflow_saved_model(exported, tmp_path / "saved")


def test_another_platform(estimator, tmp_path, caplog):
    path = estimator.export_saved_model(tmp_path, receiver_fn(), platforms=["tpu"])
    assert "'serving_default' is for ['tpu'], and is not verified: here is 'cpu'" in caplog.text
    with pytest.raises(
        ValueError, match=r"is for \['tpu'\], and here is 'cpu'. Export it with platforms=\(..., 'cpu'\)"
    ):
        js.export.load(path)
