"""Arguments that TensorFlow accepted or refused: the same here, or listed in `contract_differences`."""

import builtins
import contextlib
import inspect
import json
import re

import contract_models
import numpy as np
import pytest
from contract_differences import (
    ACCEPTED,
    LEFT_OUT,
    NOT_BUILT_YET,
    VALIDATION,
    VALIDATION_FIELDS,
    difference,
)
from contract_values import Values, find, holds, load_cases, make_function, other_recordings

import jaxspec as js

CASES = load_cases("validation")


def is_built(case):
    """Whether the library has the target of a case at all."""
    return case["target"] == "call" or find(case["target"]) is not None


REPLAYED = [case for case in CASES if is_built(case) and difference(case, VALIDATION) is None]
DIFFERENT = [case for case in CASES if is_built(case) and difference(case, VALIDATION) is not None]


def by_name(cases):
    """The cases as test parameters, with their names."""
    return [pytest.param(case, id=case["name"]) for case in cases]


def attempt(case, values):
    """Does what the case says; returns what was built, or the results of a call."""
    kwargs = values.build(case["kwargs"])
    target = case["target"]
    if target == "call":
        return call(case["method"], kwargs, values.build({"$dir": "model"}))
    if target == "RunConfig.replace":
        return js.RunConfig(**kwargs.pop("base", {})).replace(**kwargs)
    if target == "TPUEstimator":
        kwargs.setdefault("model_fn", make_function(["features", "labels", "mode", "params"]))
    if target == "TPUEstimatorSpec.as_estimator_spec":
        return js.TPUEstimatorSpec(**kwargs).as_estimator_spec()
    return find(target)(**kwargs)


def call(method, kwargs, model_dir):
    """Calls a verb of an estimator of the counting model on 3 batches of 2 rows."""
    estimator = js.TPUEstimator(contract_models.model_fn, contract_models.init_fn, model_dir=model_dir, use_tpu=False)
    result = getattr(estimator, method)(lambda: contract_models.batches(2, 3), **kwargs)
    if method == "train":
        return {"global_step": contract_models.global_step(estimator)}
    return result if method == "evaluate" else list(result)


def recorded_base(error):
    """The built-in class that the recorded exception is or derives from."""
    return next(getattr(builtins, name) for name in error["mro"] if hasattr(builtins, name))


def plain(value):
    """The texts under which a message may show a value, or the plain values and keys in it."""
    if isinstance(value, list | tuple):
        return set().union(*map(plain, value))
    if isinstance(value, dict):
        return {key for key in value if not key.startswith("$")} | plain(list(value.values()))
    return {repr(value), str(value)} if isinstance(value, int | float | str) else set()


def mentions(message, word):
    """Whether a message holds `word`, and not just as a part of a longer one."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", message, re.IGNORECASE) is not None


def unnamed(case, message):
    """What a message should name of the case's arguments, and does not.

    All arguments that the recorded message names; where it names none, any argument given, or a value of one.
    """
    given = set(case["kwargs"]) - {"use_tpu", "config", "mode"}
    names = set(given)
    target = find(case["target"]) if case["target"] != "call" else getattr(js.TPUEstimator, case["method"])
    with contextlib.suppress(TypeError, ValueError):
        names |= set(inspect.signature(target).parameters)
    recorded = case["expect"]["raises"]["message"] if "raises" in case["expect"] else ""
    wanted = {name for name in names if mentions(recorded, name)}
    if wanted:
        return sorted(name for name in wanted if not mentions(message, name))
    in_config = re.findall(r'"(\w+)":', json.dumps(case["kwargs"].get("config", {})))
    shown = given.union(in_config, *(plain(case["kwargs"][name]) for name in given))
    return [] if any(mentions(message, word) for word in shown) else sorted(shown)


def assert_same(recorded, ours, path):
    """A recorded field, in the notation of the recordings, stands for the value that we have."""
    if recorded == "<object>":
        return
    if isinstance(recorded, str) and recorded.startswith("tensor "):
        assert recorded == f"tensor {list(ours.shape)}", path
    elif isinstance(recorded, str) and re.fullmatch(r"<(PATH|DIR|MODEL_DIR)>.*", recorded):
        assert isinstance(ours, str), path
        assert ours, path
    elif isinstance(recorded, dict):
        for key, value in recorded.items():
            if isinstance(ours, dict):
                assert_same(value, ours[key], f"{path}.{key}")
            elif hasattr(ours, key):
                assert_same(value, getattr(ours, key), f"{path}.{key}")
    elif isinstance(recorded, int) and (ours is None or isinstance(ours, tuple | list)):
        assert len(ours or ()) == recorded, path
    elif isinstance(recorded, float):
        np.testing.assert_allclose(ours, recorded, rtol=1e-6, err_msg=path)
    else:
        assert ours == recorded, path
        assert isinstance(ours, bool) == isinstance(recorded, bool), path


def fields_of(case, built):
    """What the recording lists of `built`."""
    if case["target"] == "TPUEstimator":
        return {
            "config.log_step_count_steps": built.config.log_step_count_steps,
            "params": built.params,
            "has model_dir": bool(built.model_dir),
        }
    return built


def expected_fields(case):
    """The recorded fields, with our defaults where they differ on purpose."""
    owner = case["target"].partition(".")[0]
    recorded = case["expect"]["ok"]
    if not isinstance(recorded, dict):
        return {}
    defaults = {field: value for (target, field), (value, _) in VALIDATION_FIELDS.items() if target == owner}
    recorded = recorded | {field: value for field, value in defaults.items() if field not in case["kwargs"]}
    if isinstance(recorded.get("tpu_config"), dict) and not holds(case["kwargs"], "iterations_per_loop"):
        ours, _ = VALIDATION_FIELDS["TPUConfig", "iterations_per_loop"]
        recorded["tpu_config"] = recorded["tpu_config"] | {"iterations_per_loop": ours}
    return recorded


@pytest.fixture(autouse=True)
def surroundings(request, tmp_path, monkeypatch):
    """Temporary folders, and the environment of the case."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.mkdtemp", lambda: str(tmp_path / "temporary"))
    if "case" in request.fixturenames:
        for name, value in request.getfixturevalue("case").get("environment", {}).items():
            monkeypatch.setenv(name, value)


@pytest.mark.parametrize("case", by_name(case for case in REPLAYED if "ok" in case["expect"]))
def test_accepted_as_recorded(case, tmp_path):
    built = attempt(case, Values(tmp_path))
    assert_same(expected_fields(case), fields_of(case, built), case["target"])


@pytest.mark.parametrize("case", by_name(case for case in REPLAYED if "raises" in case["expect"]))
def test_refused_as_recorded(case, tmp_path):
    """The rule and the built-in type of the exception; the sentence is ours, and names what was wrong."""
    with pytest.raises(recorded_base(case["expect"]["raises"])) as caught:
        attempt(case, Values(tmp_path))
    assert not unnamed(case, str(caught.value)), str(caught.value)


@pytest.mark.parametrize("case", by_name(DIFFERENT))
def test_different_as_listed(case, tmp_path):
    name, rule = difference(case, VALIDATION)
    if rule.ours == LEFT_OUT:
        assert case.get("tensorflow_only"), name
    elif rule.ours == ACCEPTED:
        attempt(case, Values(tmp_path))
    else:
        with pytest.raises(rule.ours) as caught:
            attempt(case, Values(tmp_path))
        assert not unnamed(case, str(caught.value)), str(caught.value)


def test_every_case_is_replayed_or_listed():
    """Nothing is dropped in silence: a target that the library lacks stands in NOT_BUILT_YET."""
    unbuilt = [case for case in CASES if not is_built(case)]
    assert len(REPLAYED) + len(DIFFERENT) + len(unbuilt) == len(CASES)
    assert {case["target"] for case in unbuilt} <= set(NOT_BUILT_YET)


@pytest.mark.skipif(bool(other_recordings("validation")), reason="other recordings may lack a case")
def test_no_rule_is_idle():
    """Every difference that is listed is one that was recorded."""
    used = {difference(case, VALIDATION)[0] for case in DIFFERENT}
    assert used == set(VALIDATION)


def test_values_are_understood():
    """A kind of value that the recordings write and we do not know would be passed on as a dict."""
    known = {*Values(None).kinds, "$foreign"}
    kinds = {kind for case in CASES for kind in re.findall(r"'(\$\w+)'", repr(case["kwargs"]))}
    assert kinds <= known
    assert any(holds(case["kwargs"], "$fn") for case in CASES)
