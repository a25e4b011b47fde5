"""What export_saved_model refuses: each error says what was got, what was expected, what to write."""

import errno
import itertools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exports import ROWS, init_fn, model_fn, receiver_fn, shape, trained

import jaxspec as js
from jaxspec.export import PredictOutput, ServingInputReceiver, build_raw_serving_input_receiver_fn

# Receivers.


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ServingInputReceiver({}, {}), ValueError, "receiver_tensors must be defined, got {}. Write"),
        (lambda: ServingInputReceiver(None, None), ValueError, "receiver_tensors must be defined, got None"),
        (
            lambda: receiver_fn(x=js.export.TensorSpec((), jnp.float32))(),
            ValueError,
            r"\['x'\] has no batch dimension: its shape is \(\). Expected None first, as in \(None,\)",
        ),
        (
            lambda: receiver_fn(x=js.export.TensorSpec((784,), jnp.float32))(),
            ValueError,
            r"its shape is \(784,\). Expected None first, as in \(None, 784\), or \(None,\) if the first .*batch_sizes=",
        ),
        (
            lambda: build_raw_serving_input_receiver_fn(np.float32(1)),
            ValueError,
            r"receiver_tensors\['input'\] has no batch dimension",
        ),
        (
            lambda: receiver_fn(x=3)(),
            TypeError,
            r"\['x'\] must have a shape and a dtype, got 3. Write export.TensorSpec",
        ),
        (
            lambda: receiver_fn(x=shape(dtype=str))(),
            TypeError,
            r"has dtype <class 'str'>: strings or objects. An export",
        ),
        (
            lambda: receiver_fn(x=js.export.TensorSpec(4, jnp.float32))(),
            TypeError,
            r"\['x'\] has the shape 4. Expected a tuple, with None first for the batch: export.TensorSpec",
        ),
        (
            lambda: receiver_fn(x=shape(4, dtype="floaty"))(),
            TypeError,
            r"\['x'\] has dtype 'floaty', which JAX does not know. Expected one such as jnp.float32",
        ),
        (lambda: receiver_fn(x=str)(), TypeError, "a string. An export holds no strings, and decodes no images: parse"),
        (lambda: receiver_fn(x="jpeg")(), TypeError, "An export holds no strings, and decodes no images: parse"),
        (
            lambda: build_raw_serving_input_receiver_fn({"x": np.array(["a"])}),
            TypeError,
            r"\['x'\] has dtype <U1: strings or objects. An export holds no strings, and decodes no images: parse, decode",
        ),
        (
            lambda: receiver_fn(x=shape(dtype=jax.random.key(0).dtype))(),
            TypeError,
            r"\['x'\] has dtype key<fry>: random keys. Pass a seed, and write jax.random.key\(seed\[0\]\) in model_fn",
        ),
        (
            lambda: receiver_fn(x=shape(-1))(),
            ValueError,
            "in which -1 is no dimension. Expected whole numbers, None for any",
        ),
        (lambda: receiver_fn(x=shape("batch"))(), ValueError, "in which 'batch' is no dimension"),
        (
            lambda: ServingInputReceiver({1: shape(), "1": shape()}, {1: shape(), "1": shape()}),
            ValueError,
            "receiver_tensors keys must be strings: 1. Callers pass",
        ),
        (
            lambda: ServingInputReceiver({"y": shape(4)}, {"x": shape(4)}),
            ValueError,
            "features must be receiver_tensors themselves, or a function that computes them, got .*Write Serving",
        ),
    ],
)
def test_receivers(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("receiver_fn", "error", "message"),
    [
        (None, ValueError, "An input_receiver_fn must be defined. Write export.build_raw_serving_input_receiver_fn"),
        (3, TypeError, "serving_input_receiver_fn must be callable, given: 3. Write"),
        (lambda x: None, ValueError, r"serving_input_receiver_fn \(.*\) has following not expected args: \['x'\]"),
        (
            receiver_fn(lambda tensors: {"x": tensors["x"], "text": "abc"}),
            TypeError,
            "the features function of the receiver returned 'abc' as 'text'. An export holds no strings",
        ),
        (lambda: {"x": shape(4)}, TypeError, r"\(.*lambda.*\) must return an export.ServingInputReceiver, got {'x'"),
        (
            receiver_fn(x=shape(4), y=shape(2)),
            ValueError,
            r"receiver_tensors \['y'\] are not used by any signature of \['serving_default'\]: .*Leave them out",
        ),
    ],
)
def test_receiver_functions(estimator, tmp_path, receiver_fn, error, message):
    with pytest.raises(error, match=message):
        estimator.export_saved_model(tmp_path, receiver_fn)
    assert os.listdir(tmp_path) == []


def test_a_sample_that_the_model_refuses(estimator, tmp_path):
    with pytest.raises(TypeError) as caught:
        estimator.export_saved_model(tmp_path, receiver_fn(x=shape(5)))
    assert "on a sample of what serving_input_receiver_fn describes: x: float32[7,5]" in caught.value.__notes__[-1]


def test_a_sample_that_the_features_function_refuses(estimator, tmp_path):
    with pytest.raises(KeyError) as caught:
        estimator.export_saved_model(tmp_path, receiver_fn(lambda tensors: tensors["y"]))
    assert "ran the features of the receiver on a sample of what" in caught.value.__notes__[-1]
    assert "describes: x: float32[7,4]" in caught.value.__notes__[-1]


# Models.


def test_no_trained_model(tmp_path):
    estimator = js.TPUEstimator(model_fn, init_fn, model_dir=tmp_path / "fresh")
    with pytest.raises(ValueError, match="Couldn't find trained model at .*fresh. Train first, or name a checkpoint"):
        estimator.export_saved_model(tmp_path / "x", receiver_fn())


def test_a_signature_without_a_string_for_its_name(tmp_path):
    outputs = lambda logits, features: {name: PredictOutput(logits) for name in (1, "1", "serving_default")}  # noqa: E731
    estimator = trained(tmp_path / "model", outputs=outputs)
    with pytest.raises(
        TypeError, match="`export_outputs` must have strings for keys, the names of signatures, received: 1"
    ):
        estimator.export_saved_model(tmp_path / "x", receiver_fn())


def test_random_keys_are_not_returned(tmp_path):
    outputs = lambda logits, features: {"a": PredictOutput({"key": jax.random.key(0)})}  # noqa: E731
    with pytest.raises(TypeError, match=r"signature 'a' returns random keys as 'key': .* jax.random.key_data\(keys\)"):
        trained(tmp_path / "model", outputs=outputs).export_saved_model(tmp_path / "x", receiver_fn())


@pytest.mark.parametrize(
    "double",
    [
        lambda x: (jax.debug.print("{}", x), 2 * x)[1],
        lambda x: jax.lax.cond(x.sum() > 0, lambda x: (jax.debug.callback(print, x), x)[1], lambda x: x, x),
        lambda x: jax.pure_callback(lambda x: 2 * x, jax.ShapeDtypeStruct(x.shape, x.dtype), x),
    ],
    ids=["print", "within a function", "pure_callback"],
)
def test_functions_of_python(tmp_path, double):
    outputs = lambda logits, features: {"a": PredictOutput(double(logits))}  # noqa: E731
    with pytest.raises(ValueError, match=r"calls a Python function in PREDICT \(.*\), which an export .*Leave out"):
        trained(tmp_path / "model", outputs=outputs).export_saved_model(tmp_path / "x", receiver_fn())


@pytest.mark.parametrize("dtype", ["float32", "int32", "complex64"])
def test_a_program_that_differs_from_predict(tmp_path, dtype):
    calls = itertools.count()

    def impure(variables, features, labels, mode, params):
        if mode == js.ModeKeys.PREDICT:
            return js.TPUEstimatorSpec(mode, predictions={"x": (features["x"] + next(calls)).astype(dtype)})
        return model_fn(variables, features, labels, mode, params)

    estimator = trained(tmp_path / "model", impure)
    message = (
        r"signature 'serving_default': the output 'x' of the exported program differs from what predict computes on the "
        rf"same sample: {dtype}\[7,4\] of .*, expected {dtype}\[7,4\] of .*. model_fn must be a pure function"
    )
    with pytest.raises(ValueError, match=message):
        estimator.export_saved_model(tmp_path / "x", receiver_fn())
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("if x.shape[0] > 7: x = x * 2", "if x.shape[0] > 7: x = x * 2"),
        ("x = x.reshape(7, -1)", "x = x.reshape(7, -1)"),
        ("x = x * range(x.shape[0])[0]", "x = x * range(x.shape[0])[0]"),
    ],
)
def test_the_line_that_has_no_symbolic_form(tmp_path, body, line):
    path = tmp_path / "users_model.py"
    path.write_text(f"def scaled(x):\n    {body}\n    return x\n")
    names = {}
    exec(compile(path.read_text(), str(path), "exec"), names)

    def model(variables, features, labels, mode, params):
        if mode == js.ModeKeys.PREDICT:
            return js.TPUEstimatorSpec(mode, predictions={"x": names["scaled"](features["x"])})
        return model_fn(variables, features, labels, mode, params)

    with pytest.raises(ValueError, match="has no form for open sizes") as caught:
        trained(tmp_path / "model", model).export_saved_model(tmp_path / "x", receiver_fn())
    assert f"The line that needs a number: `{line}` ({path}:2)" in str(caught.value)


@pytest.mark.parametrize(
    ("platforms", "message"),
    [
        (
            ["cpu", "gpu"],
            "expected one or more of 'cpu', 'cuda', 'rocm', 'tpu', got 'gpu'. .*a GPU of NVIDIA is 'cuda'",
        ),
        ([], r"platforms=\[\]: expected one or more of"),
        ("quantum", "got 'quantum'"),
        (None, "got None. Write platforms="),
    ],
)
def test_platforms(estimator, tmp_path, platforms, message):
    with pytest.raises(ValueError, match=message):
        estimator.export_saved_model(tmp_path, receiver_fn(), platforms=platforms)


# Directories.


@pytest.mark.parametrize(
    ("assets", "error", "message"),
    [
        (["a"], TypeError, r"assets_extra must be a dict of name: path, got \['a'\]"),
        ({"../a": __file__}, ValueError, r"has the name '../a'. Expected a relative path within the export"),
        ({"/a": __file__}, ValueError, "has the name '/a'"),
        ({3: __file__}, ValueError, "has the name 3"),
        ({"a": __file__, "a/b": __file__}, ValueError, "has the name 'a', and others below it. A file is no directory"),
        ({"a": "/no/such/file"}, FileNotFoundError, r"assets_extra\['a'\] is '/no/such/file': there is no such file"),
    ],
)
def test_assets(estimator, tmp_path, assets, error, message):
    with pytest.raises(error, match=message):
        estimator.export_saved_model(tmp_path, receiver_fn(), assets)


def test_a_base_that_is_a_file(estimator, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError) as caught:
        estimator.export_saved_model(tmp_path / "file", receiver_fn())
    assert "must be a directory that can be written to, or made. Choose another one." in caught.value.__notes__[-1]


def test_a_base_that_cannot_be_written(estimator, tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *args, **kwargs: False)  # the tests may run as root
    with pytest.raises(PermissionError) as caught:
        estimator.export_saved_model(tmp_path, receiver_fn())
    assert f"export_dir_base {str(tmp_path)!r} must be a directory" in caught.value.__notes__[-1]


def test_a_base_that_cannot_be_made(estimator, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("os.makedirs", refuse)
    with pytest.raises(OSError, match="Read-only") as caught:
        estimator.export_saved_model(tmp_path / "x", receiver_fn())
    assert f"The export was not written to {tmp_path / 'x'}, and nothing is left" in caught.value.__notes__[-1]


def test_a_full_disk(estimator, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.numpy.save_file", full)
        with pytest.raises(OSError, match="No space left") as caught:
            estimator.export_saved_model(tmp_path, receiver_fn())
    assert (
        f"The export was not written to {tmp_path}, and nothing is left of it. Free space" in caught.value.__notes__[-1]
    )
    assert os.listdir(tmp_path) == []
    assert js.export.load(estimator.export_saved_model(tmp_path, receiver_fn()))(x=ROWS)


def test_a_directory_that_another_run_has_just_made(estimator, tmp_path, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.0)
    listed = os.listdir
    (tmp_path / "1700000000").mkdir()
    (tmp_path / "1700000000" / "other").write_text("")
    (tmp_path / "temp-1700000000").mkdir()
    monkeypatch.setattr("os.listdir", lambda path: [] if str(path) == str(tmp_path) else listed(path))
    path = estimator.export_saved_model(tmp_path, receiver_fn())
    assert os.path.basename(path) == "1700000001"
