"""Transcripts of TensorFlow's real runs, replayed: the same calls, hooks, steps and files, or a listed difference."""

import builtins
import copy
import importlib
import math
import re

import numpy as np
import pytest
from contract_values import load, other_recordings
from flow_differences import CHANGES, LEFT_OUT
from flow_registry import SCENARIOS
from flow_transcript import FALLBACK, Recording, Transcript, label_of, setups

for module in ("flow_train", "flow_inference", "flow_hooks", "flow_training"):
    importlib.import_module(module)  # which registers its scenarios
pytestmark = pytest.mark.slow(reason="each transcript is a training, or several, with checkpoints on the way")
DOCUMENT = load("control_flow")
CASES = {case["name"]: case for case in DOCUMENT["cases"]}
AGAIN = pytest.mark.slow(reason="the transcripts that several devices have replayed, once more")


def replays():
    """A case and a setup for each replay."""
    for name, case in CASES.items():
        if name in SCENARIOS:
            fallback_only = SCENARIOS[name][1]
            for setup in [FALLBACK] if fallback_only else setups(DOCUMENT["parameters"]["batch"]):
                again = setup is FALLBACK and not fallback_only
                yield pytest.param(case, setup, id=f"{name}, {setup.name}", marks=[AGAIN] if again else [])


@pytest.mark.parametrize(("case", "setup"), list(replays()))
def test_replayed(case, setup, tmp_path):
    name, recorded = case["name"], Recording(case, DOCUMENT["parameters"])
    expected = copy.deepcopy(case["events"])
    for _, change in CHANGES.get(name, ()):
        change(expected, setup=setup, **recorded.arguments)
    run = Transcript(tmp_path, recorded, setup)
    SCENARIOS[name][0](run, **recorded.arguments)
    ours = run.events
    assert [label_of(event) for event in ours] == [label_of(event) for event in expected]
    for number, (want, have) in enumerate(zip(expected, ours, strict=True)):
        compare(want, have, f"event {number}: {label_of(want)}", logs="logging_tensor" in name)


def compare(want, have, where, *, logs):
    """Holds an event to the recorded one."""
    if isinstance(want, str):
        return
    if "call" in want:
        compare_results(want, have, where)
        assert_same(want.get("inside", []), have["inside"], f"{where}, inside")
        assert_same(want.get("losses", []), have["losses"], f"{where}, losses")
        if logs:
            assert values_logged(have["log"]) == values_logged(want["log"]), where
    elif "state" in want:
        for field in ("checkpoints", "latest", "global_step", "w"):
            assert have.get(field) == want.get(field), f"{where}, {field}"
        if "files" in want:
            folders = {path.rpartition("/")[0] for path in want["files"] if path.startswith("eval")}
            assert have["event folders"] == sorted(folders), where
    else:
        assert_same(want["data"], have["data"], where)


def compare_results(want, have, where):
    """The value that a call returned, or the built-in class of its exception."""
    if "raised" in want:
        assert "raised" in have, f"{where} returned {have.get('returned')!r}, recorded {want['raised']}"
        base = next(name for name in want["raised"]["mro"] if hasattr(builtins, name))
        assert base in have["raised"]["mro"], f"{where}: {have['raised']}"
        assert have["raised"]["message"] or base == "KeyboardInterrupt", where
    else:
        assert "returned" in have, f"{where} raised {have.get('raised')}"
        assert_same(want["returned"], have["returned"], f"{where}, returned")


def assert_same(want, have, where):
    """A recorded value and ours, numbers to rounding."""
    if is_events(want):
        want, have = sorted(map(plain_event, want)), sorted(map(plain_event, have))
    if isinstance(want, dict):
        assert isinstance(have, dict), where
        assert have.keys() == want.keys(), where
        for key in want:
            assert_same(want[key], have[key], f"{where}[{key!r}]")
    elif isinstance(want, list | tuple):
        assert len(have) == len(want), f"{where}: {have} for {want}"
        for number, pair in enumerate(zip(want, have, strict=True)):
            assert_same(*pair, f"{where}[{number}]")
    elif isinstance(want, float | int | np.ndarray | np.generic) and not isinstance(want, bool):
        np.testing.assert_allclose(np.asarray(have, np.float64), np.asarray(want, np.float64), rtol=1e-5, err_msg=where)
    else:
        assert have == want, f"{where}: {have!r} for {want!r}"


def is_events(value):
    """Whether a value lists summaries: `[step, tag, kind, value]`."""
    return isinstance(value, list) and any(isinstance(e, list) and len(e) == 4 and isinstance(e[1], str) for e in value)


def plain_event(event):
    """A summary that can be sorted. The two ways to write a number are one."""
    step, tag, kind, value = event
    number = isinstance(value, float) or (isinstance(value, np.ndarray) and value.ndim == 0)
    shown = "nan" if number and math.isnan(value) else f"{float(value):.6g}" if number else str(value)
    return [step, tag, "simple_value" if number else kind, shown]


def values_logged(lines):
    """The lines of a LoggingTensorHook."""
    lines = [line.removeprefix("INFO ") for line in lines]
    return [line for line in lines if re.match(r"\w+ (=|is) ", line)]


def test_every_case_is_replayed_or_left_out_with_a_reason():
    if other_recordings("control_flow") is None:
        assert SCENARIOS.keys() | LEFT_OUT.keys() == CASES.keys()
    assert not SCENARIOS.keys() & LEFT_OUT.keys()
    assert SCENARIOS.keys() >= CHANGES.keys()
    assert all(reason for changes in CHANGES.values() for reason, _ in changes)


def test_the_replay_can_fail():
    case = copy.deepcopy(CASES["train/max_steps"])
    case["events"][1]["checkpoints"] = [0]
    with pytest.raises(AssertionError, match="checkpoints"):
        compare(case["events"][1], {**case["events"][1], "checkpoints": [0, 10]}, "here", logs=False)
    with pytest.raises(AssertionError, match="losses"):
        compare(case["events"][0], {**case["events"][0], "losses": [0.0]}, "here", logs=False)
