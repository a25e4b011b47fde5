"""warm_start_from: fresh variables that start with stored values."""

import logging
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from safetensors.numpy import save_file
from tiny_models import data

import jaxspec as js

X, _ = data(rows=16)
SETTINGS = js.WarmStartSettings
VALUES = {
    "params/body/w": np.arange(12, dtype=np.float32).reshape(4, 3),
    "params/body/b": np.array([1, 2, 3], np.float32),
    "params/head/w": np.ones((3, 2), np.float32),
    "batch_stats/body/mean": np.array([5, 6, 7], np.float32),
}
TRAINED = [name for name in VALUES if name.startswith("params")]


def nested(values):
    tree = {}
    for name, value in values.items():
        *parents, last = name.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = jnp.asarray(value)
    return tree


def zeros_like(values):
    """An init_fn."""
    return lambda: nested({name: np.zeros_like(value) for name, value in values.items()})


zeros = zeros_like(VALUES)


def model_fn(variables, features, mode):
    """Its training leaves the weights as they are, so that a test sees what they were at the start."""
    body, head = variables["params"]["body"], variables["params"]["head"]
    hidden = features @ body["w"] + body["b"] - variables["batch_stats"]["body"]["mean"]
    return js.TPUEstimatorSpec(
        mode,
        predictions={"hidden": hidden},
        loss=(hidden @ head["w"]).mean(),
        train_op=js.minimize(optax.sgd(0.0, momentum=0.9)),
        eval_metrics=(lambda hidden: {"hidden": js.metrics.mean(hidden)}, [hidden]),
    )


def estimator(directory, warm_start_from=None, init_fn=zeros, model_fn=model_fn, **config):
    return js.TPUEstimator(
        model_fn,
        init_fn,
        model_dir=directory,
        config=js.RunConfig(save_summary_steps=None, log_step_count_steps=None, **config),
        use_tpu=False,
        warm_start_from=warm_start_from,
    )


def input_fn():
    return [(X[:8], None), (X[8:], None)]


def started(directory, warm_start_from, **kwargs):
    """The values that training starts with."""
    it = estimator(directory, warm_start_from, **kwargs).train(input_fn, steps=1)
    return {name: it.get_variable_value(name) for name in it.get_variable_names() if name.split("/")[0] in zeros()}


def check(values, taken):
    for name, value in values.items():
        expected = VALUES[name] if name in taken else np.zeros_like(VALUES[name])
        np.testing.assert_array_equal(value, expected, err_msg=name)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """An estimator whose model_dir holds VALUES, at steps 1 and 2."""
    made = estimator(tmp_path_factory.mktemp("pretrained"), init_fn=lambda: nested(VALUES), save_checkpoints_steps=1)
    return made.train(input_fn, steps=2)


@pytest.fixture
def safetensors(tmp_path):
    """Writes a file of arrays, by default VALUES."""

    def write(values=VALUES, name="weights.safetensors"):
        (tmp_path / "files").mkdir(exist_ok=True)
        save_file(values, tmp_path / "files" / name)
        return tmp_path / "files" / name

    return write


# Where weights come from.


def test_from_a_model_dir_its_latest_checkpoint_is_taken(tmp_path, pretrained):
    it = estimator(tmp_path, pretrained.model_dir)
    assert it.warm_start_report is None
    it.train(input_fn, steps=1)
    assert it.warm_start_report == js.WarmStartReport(
        path=pretrained.latest_checkpoint(),
        matched={name: name for name in sorted(TRAINED)},
        converted={},
        missing={},
        differing={},
        fresh=("batch_stats/body/mean",),
        unused=("batch_stats/body/mean",),
    )
    assert it.get_variable_value("global_step") == 1


def test_from_a_checkpoint_path(tmp_path, pretrained):
    check(started(tmp_path, f"{pretrained.model_dir}/model.ckpt-1"), TRAINED)


def test_from_a_safetensors_file(tmp_path, safetensors):
    check(started(tmp_path / "run", safetensors()), TRAINED)


def test_from_a_directory_with_a_safetensors_file(tmp_path, safetensors):
    check(started(tmp_path / "run", safetensors().parent), TRAINED)


def test_a_damaged_newest_checkpoint_is_skipped_with_a_warning(tmp_path, pretrained, caplog):
    copy = shutil.copytree(pretrained.model_dir, tmp_path / "copy")
    (copy / "model.ckpt-2" / "manifest.json").write_text("{}")
    it = estimator(tmp_path / "run", copy).train(input_fn, steps=1)
    assert it.warm_start_report.path.endswith("model.ckpt-1")
    assert "model.ckpt-2 is damaged" in caplog.text


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64], ids=str)
def test_floats_are_converted_to_the_dtype_of_the_model_and_that_is_reported(tmp_path, safetensors, dtype):
    path = safetensors({name: value.astype(dtype) for name, value in VALUES.items()})
    it = estimator(tmp_path / "run", path).train(input_fn, steps=1)
    assert it.warm_start_report.converted == {name: f"{np.dtype(dtype)} to float32" for name in TRAINED}
    assert it.get_variable_value("params/body/w").dtype == np.float32
    np.testing.assert_array_equal(it.get_variable_value("params/body/w"), VALUES["params/body/w"])


def test_a_model_in_bfloat16_takes_bfloat16_as_it_is(tmp_path, safetensors):
    narrow = {name: value.astype(ml_dtypes.bfloat16) for name, value in VALUES.items()}
    it = estimator(tmp_path / "run", safetensors(narrow), init_fn=zeros_like(narrow), fail_on_nan_loss=False)
    it.train(lambda: [(batch.astype(jnp.bfloat16), None) for batch, _ in input_fn()], steps=1)
    assert it.warm_start_report.converted == {}
    assert it.get_variable_value("params/body/w").dtype == jnp.bfloat16


def test_from_an_export(tmp_path, pretrained):
    def receiver():
        shapes = jax.ShapeDtypeStruct((None, 4), np.float32)
        return js.export.ServingInputReceiver(shapes, shapes)

    export = pretrained.export_saved_model(tmp_path / "exports", receiver, platforms=["cpu"])
    it = estimator(tmp_path / "run", SETTINGS(export, [".*"])).train(input_fn, steps=1)
    check({name: it.get_variable_value(name) for name in VALUES}, list(VALUES))
    assert it.warm_start_report.path == f"{export}/weights.safetensors"
    assert it.warm_start_report.unused == ()


def test_from_a_checkpoint_of_tensorflow(tmp_path):
    stored = pathlib.Path(__file__).parents[1] / "tensorflow_oracle" / "data" / "continued" / "adam" / "model.ckpt-20"
    renames = {"params/body/w": "hidden/kernel"}

    def small(variables, features, mode):
        return js.TPUEstimatorSpec(
            mode, loss=(features @ variables["params"]["body"]["w"]).mean(), train_op=js.minimize(optax.sgd(0.0))
        )

    init_fn = zeros_like({"params/body/w": np.zeros((4, 6), np.float32)})
    it = estimator(tmp_path, SETTINGS(stored, "params/body/w", renames), init_fn=init_fn, model_fn=small)
    it.train(input_fn, steps=1)
    np.testing.assert_array_equal(
        it.get_variable_value("params/body/w"), js.checkpoint.tf.load_variable(stored, "hidden/kernel")
    )
    assert {"beta1_power", "hidden/kernel/Adam", "logits/bias"} <= set(it.warm_start_report.unused)
    assert it.get_variable_value("global_step") == 1


def test_the_end_of_keras_names_is_left_out(tmp_path):
    stored = pathlib.Path(__file__).parents[1] / "tensorflow_oracle" / "data" / "checkpoints" / "text"
    weights = js.checkpoint.tf.load_variable(stored, "model/classifier/bias/.ATTRIBUTES/VARIABLE_VALUE")
    init_fn = zeros_like({"params/b": weights})

    def small(variables, features, mode):
        return js.TPUEstimatorSpec(mode, loss=variables["params"]["b"].sum(), train_op=js.minimize(optax.sgd(0.0)))

    it = estimator(
        tmp_path, SETTINGS(stored, ".*", {"params/b": "model/classifier/bias"}), init_fn=init_fn, model_fn=small
    )
    np.testing.assert_array_equal(it.train(input_fn, steps=1).get_variable_value("params/b"), weights)


def test_a_relative_path_is_resolved_by_the_constructor(tmp_path, pretrained, monkeypatch):
    monkeypatch.chdir(pathlib.Path(pretrained.model_dir).parent)
    it = estimator(tmp_path, pathlib.Path(pretrained.model_dir).name)
    monkeypatch.chdir("/")
    it.train(input_fn, steps=1)
    assert it.warm_start_report.path == pretrained.latest_checkpoint()


# Which variables take them.


@pytest.mark.parametrize(
    ("patterns", "taken"),
    [
        (".*", TRAINED),
        ("params/body", ["params/body/w", "params/body/b"]),
        ("body", "an error"),
        ([".*"], list(VALUES)),
        (["params/head", "batch_stats"], ["params/head/w", "batch_stats/body/mean"]),
        ("(?!params/head/w$)", ["params/body/w", "params/body/b"]),
    ],
)
def test_regular_expressions_select(tmp_path, pretrained, patterns, taken):
    settings = SETTINGS(pretrained.model_dir, vars_to_warm_start=patterns)
    if taken == "an error":
        with pytest.raises(ValueError, match=r"vars_to_warm_start='body' matches none of the variables: params/body/b"):
            started(tmp_path, settings)
    else:
        check(started(tmp_path, settings), taken)


def test_each_pattern_of_a_list_must_match_something(tmp_path, pretrained):
    refused(
        tmp_path,
        SETTINGS(pretrained.model_dir, ["params/body", "batch_stat/"]),
        "vars_to_warm_start='batch_stat/' matches none of the variables: batch_stats",
    )


def test_a_string_that_would_match_another_collection_alone_says_how_to_take_it(tmp_path, pretrained):
    settings = SETTINGS(pretrained.model_dir, "batch_stats/.*")
    refused(tmp_path, settings, "A list selects among all collections: ['batch_stats/.*'].")


def with_key(seed):
    """An init_fn of VALUES and a typed random key."""
    return lambda: nested(VALUES) | {"rngs": {"key": jax.random.key(seed)}}


@pytest.mark.parametrize("as_file", [False, True])
def test_a_list_takes_typed_random_keys_too(tmp_path, as_file):
    source = estimator(tmp_path / "source", init_fn=with_key(3)).train(input_fn, steps=1)
    path = source.model_dir
    if as_file:
        path = tmp_path / "weights.safetensors"
        js.export.save_safetensors(path, source.variables())
    it = estimator(tmp_path / "run", SETTINGS(path, ["rngs/"]), init_fn=with_key(4)).train(input_fn, steps=1)
    np.testing.assert_array_equal(it.variables()["rngs"]["key"], source.variables()["rngs"]["key"])
    assert it.warm_start_report.matched == {"rngs/key": "rngs/key"}


def test_keys_of_another_kind_are_refused(tmp_path):
    source = estimator(tmp_path / "source", init_fn=with_key(3)).train(input_fn, steps=1)
    refused(
        tmp_path,
        SETTINGS(source.model_dir, ["rngs/"]),
        "rngs/key is uint32[2] in the checkpoint, uint32[4] in the model",
        init_fn=lambda: nested(VALUES) | {"rngs": {"key": jax.random.key(4, impl="rbg")}},
    )


@pytest.mark.parametrize(
    ("stored", "dtype"), [(np.array([1.0, 1e30], np.float32), np.float16), (np.array([1, 2**40]), np.int32)]
)
def test_values_that_the_variable_cannot_hold_are_refused(tmp_path, safetensors, stored, dtype):
    path = safetensors({"params/body/w": VALUES["params/body/w"], "counts/n": stored})
    init_fn = lambda: nested(VALUES) | {"counts": {"n": jnp.zeros(2, dtype)}}  # noqa: E731
    refused(
        tmp_path,
        SETTINGS(path, ["counts"]),
        f"warm start: counts/n from 'counts/n' of {path} is {stored.dtype}[2], which does not fit {np.dtype(dtype)}[2]",
        init_fn=init_fn,
    )


def test_wide_integers_are_taken_if_their_values_fit(tmp_path, safetensors):
    init_fn = lambda: nested(VALUES) | {"counts": {"n": jnp.zeros(2, jnp.int32)}}  # noqa: E731
    path = safetensors({"counts/n": np.array([1, 2**31 - 1])})
    it = estimator(tmp_path / "run", SETTINGS(path, ["counts"]), init_fn=init_fn).train(input_fn, steps=1)
    np.testing.assert_array_equal(it.get_variable_value("counts/n"), [1, 2**31 - 1])
    assert it.warm_start_report.converted == {"counts/n": "int64 to int32"}


def test_none_takes_nothing_with_a_warning(tmp_path, pretrained, caplog):
    check(started(tmp_path, SETTINGS(pretrained.model_dir, vars_to_warm_start=None)), [])
    assert (
        f"vars_to_warm_start=None selects nothing: the warm start left {pretrained.latest_checkpoint()}" in caplog.text
    )


def test_a_string_that_would_match_other_collections_too_says_that_they_are_left(tmp_path, pretrained, caplog):
    started(tmp_path / "a", SETTINGS(pretrained.model_dir, "params/.*"))
    started(tmp_path / "b", SETTINGS(pretrained.model_dir, [".*"]))
    assert not caplog.records
    started(tmp_path / "c", pretrained.model_dir)
    (record,) = caplog.records
    assert "leaves batch_stats/body/mean as init_fn made them" in record.getMessage()
    assert record.getMessage().endswith("write it as a list: ['.*'].")


def test_other_names_in_the_checkpoint(tmp_path, safetensors):
    path = safetensors({"dense/kernel": VALUES["params/body/w"], "params/body/b": VALUES["params/body/b"]})
    renames = {"params/body/w": "dense/kernel"}
    it = estimator(tmp_path / "run", SETTINGS(path, "params/body", renames)).train(input_fn, steps=1)
    assert it.warm_start_report.matched == {"params/body/b": "params/body/b", "params/body/w": "dense/kernel"}
    np.testing.assert_array_equal(it.get_variable_value("params/body/w"), VALUES["params/body/w"])


# When.


def test_a_checkpoint_in_model_dir_wins(tmp_path, pretrained):
    estimator(tmp_path).train(input_fn, steps=1)
    it = estimator(tmp_path, pretrained.model_dir).train(input_fn, steps=1)
    assert it.warm_start_report is None
    check({name: it.get_variable_value(name) for name in VALUES}, [])


def test_evaluate_and_predict_with_an_empty_model_dir_use_the_weights(tmp_path, pretrained, caplog):
    it = estimator(tmp_path, SETTINGS(pretrained.model_dir, [".*"]))
    expected = X @ VALUES["params/body/w"] + VALUES["params/body/b"] - VALUES["batch_stats/body/mean"]
    hidden = np.stack([example["hidden"] for example in it.predict(lambda: [(X, None)])])
    np.testing.assert_allclose(hidden, expected, rtol=1e-5)
    result = it.evaluate(lambda: [(X, None)])
    np.testing.assert_allclose(result["hidden"], expected.mean(), rtol=1e-5)
    assert result["global_step"] == 0
    assert "fresh weights" not in caplog.text


def test_the_optimizer_starts_anew(tmp_path, pretrained):
    warm = estimator(tmp_path / "a", SETTINGS(pretrained.model_dir, [".*"])).train(input_fn, steps=1)
    cold = estimator(tmp_path / "b", init_fn=lambda: nested(VALUES)).train(input_fn, steps=1)
    names = [name for name in warm.get_variable_names() if name.startswith("opt_state")]
    assert names
    for name in names:
        np.testing.assert_array_equal(warm.get_variable_value(name), cold.get_variable_value(name))


def test_the_init_fn_of_a_scaffold_sees_the_stored_values(tmp_path, pretrained):
    seen = []

    def with_scaffold(variables, features, mode):
        spec = model_fn(variables, features, mode)
        return spec._replace(scaffold_fn=lambda: js.Scaffold(lambda variables: seen.append(variables) or variables))

    started(tmp_path, pretrained.model_dir, model_fn=with_scaffold)
    np.testing.assert_array_equal(seen[0]["params"]["body"]["w"], VALUES["params/body/w"])


def test_on_four_devices(tmp_path, pretrained):
    it = js.TPUEstimator(
        model_fn,
        zeros,
        model_dir=tmp_path,
        config=js.RunConfig(save_summary_steps=None, tpu_config=js.TPUConfig(num_shards=4)),
        train_batch_size=8,
        warm_start_from=pretrained.model_dir,
    ).train(input_fn, steps=1)
    check({name: it.get_variable_value(name) for name in VALUES}, TRAINED)


def test_it_is_logged(tmp_path, pretrained, caplog):
    with caplog.at_level(logging.INFO, "jaxspec"):
        started(tmp_path, SETTINGS(pretrained.model_dir, "params/body"))
    assert (
        f"Warm-starting from: {pretrained.latest_checkpoint()}. 2 variables take stored values. 2 keep those of "
        "init_fn: batch_stats/body/mean, params/head/w. Left unused in the checkpoint: batch_stats/body/mean, "
        "params/head/w." in caplog.text
    )


# Errors.


def refused(tmp_path, warm_start_from, *parts, **kwargs):
    """Nothing is trained, and the message has these parts; returns the estimator."""
    it = estimator(tmp_path / "run", warm_start_from, **kwargs)
    with pytest.raises(ValueError, match=re.escape(parts[0])) as caught:
        it.train(input_fn, steps=1)
    assert all(part in str(caught.value) for part in parts), caught.value
    assert it.latest_checkpoint() is None
    return it


def test_variables_that_are_missing_or_differ_are_named_with_what_to_write(tmp_path, safetensors):
    stored = {"params/body/w": np.zeros((4, 5), np.float32), "params/body/b": np.zeros(3, np.int32), "old": np.zeros(1)}
    it = refused(
        tmp_path,
        path := safetensors(stored),
        f"warm start from {path}: params/body/b is int32[3] in the checkpoint, float32[3] in the model; "
        "params/body/w is float32[4,5] in the checkpoint, float32[4,3] in the model; "
        "params/head/w is not in the checkpoint. Nothing was taken.",
        "var_name_to_prev_var_name={'params/body/b': NAME}",
        "the checkpoint also has old.",
        "vars_to_warm_start='(?!params/body/b$|params/body/w$|params/head/w$)'",
    )
    report = it.warm_start_report
    assert report.matched == {}
    assert report.missing == {"params/head/w": "params/head/w"}
    assert list(report.differing) == ["params/body/b", "params/body/w"]


def test_the_error_says_a_pattern_that_leaves_out_what_is_missing(tmp_path, safetensors):
    path = safetensors({name: VALUES[name] for name in TRAINED[:2]})
    it = estimator(tmp_path / "a", path)
    with pytest.raises(ValueError, match="not in the checkpoint") as caught:
        it.evaluate(lambda: [(X, None)])
    pattern = re.search(r"vars_to_warm_start='(.*)'\.$", str(caught.value))[1]
    check(started(tmp_path / "b", SETTINGS(path, pattern)), TRAINED[:2])


def test_a_renamed_variable_that_is_missing_is_named_with_both_names(tmp_path, pretrained):
    settings = SETTINGS(pretrained.model_dir, ".*", {"params/head/w": "logits/w"})
    refused(tmp_path, settings, "params/head/w is not in the checkpoint as logits/w. Nothing")


def test_renames_that_are_not_used_are_refused(tmp_path, pretrained):
    settings = SETTINGS(pretrained.model_dir, "params/body", {"params/haed/w": "x", "params/head/w": "y"})
    refused(
        tmp_path,
        settings,
        "You provided the following variables in var_name_to_prev_var_name that were not used: "
        "['params/haed/w', 'params/head/w']. Perhaps you misspelled them",
        "viable variable names: params/body/b, params/body/w",
    )


def test_two_variables_of_one_name_are_refused(tmp_path, pretrained):
    settings = SETTINGS(pretrained.model_dir, ".*", {"params/head/w": "params/body/w"})
    refused(tmp_path, settings, "params/body/w and params/head/w both take params/body/w")


def test_a_path_with_nothing_or_something_else(tmp_path, safetensors):
    refused(
        tmp_path, tmp_path / "nothing", f"there is nothing at {tmp_path}/nothing. Expected the path of a checkpoint"
    )
    with pytest.raises(FileNotFoundError):
        started(tmp_path / "run", tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    refused(tmp_path, tmp_path / "empty", f"{tmp_path}/empty holds no weights. Expected the path of a checkpoint")
    (tmp_path / "x.safetensors").write_bytes(b"no safetensors")
    refused(tmp_path, tmp_path / "x.safetensors", f"{tmp_path}/x.safetensors is no whole file of safetensors: ")
    safetensors(name="a.safetensors")
    directory = safetensors(name="b.safetensors").parent
    refused(tmp_path, directory, f"{directory} holds several files of weights: ['a.safetensors', 'b.safetensors']")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SETTINGS(""), ValueError, "`ckpt_to_initialize_from` MUST be set in WarmStartSettings"),
        (lambda: SETTINGS("a", "("), ValueError, r"vars_to_warm_start='(' is no regular expression: missing )"),
        (lambda: SETTINGS("a", 3), ValueError, "must be a regular expression, a list of them, or None; got 3"),
        (lambda: SETTINGS("a", [3]), ValueError, "must be a regular expression, a list of them, or None; got [3]"),
        (lambda: SETTINGS("a", ".*", {"x": 3}), TypeError, "must be a dict of names in the model to names in the"),
        (lambda: SETTINGS("a", ".*", {"x": 3}), TypeError, "there is no var_name_to_vocab_info before it"),
        (
            lambda: estimator("unused", 3),
            ValueError,
            "warm_start_from must be a string or a WarmStartSettings, instead",
        ),
    ],
)
def test_bad_settings(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()
