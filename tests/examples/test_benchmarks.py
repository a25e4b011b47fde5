"""The benchmarks run, with tiny sizes, and their report is what they saved."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
GROUPS = {
    "train": ["train, tiny"],
    "evaluate": ["evaluate with accuracy, tiny"],
    "predict": ["predict in batches, tiny", "predict one by one, tiny"],
    "calls": ["a second call on one batch"],
    "loops": ["microseconds a step, 10 arrays"],
    "input_sizes": ["numpy_input_fn, shuffled"],
    "host_call": ["around the steps, MLP", "host_call by its size, MLP"],
    "devices": ["train on several devices, MLP"],
    "memory": ["memory after 100,000 steps", "resident memory while training"],
    "startup": ["time to the first step, MLP"],
    "metrics": [
        "metrics: auc",
        "metrics: accuracy",
        "metrics: precision_at_k, an untrained model",
        "metrics: precision_at_k, a trained model",
        "metrics: working memory",
    ],
}
ONLY = {"train": "tiny", "evaluate": "accuracy, tiny", "predict": "tiny", "loops": "10 arrays"}


def run(script, *arguments):
    return subprocess.run(
        [sys.executable, FOLDER / f"{script}.py", *arguments], capture_output=True, text=True, timeout=300, check=True
    ).stdout


@pytest.mark.slow(reason="each benchmark compiles its models in a process of its own")
@pytest.mark.parametrize("script", list(GROUPS))
def test_a_benchmark_runs_and_saves_what_it_prints(script, tmp_path):
    printed = run(script, "--quick", f"--only={ONLY.get(script, '')}", f"--out={tmp_path}")
    saved = json.loads((tmp_path / f"{script}.json").read_text())
    assert [group["title"] for group in saved["groups"]] == GROUPS[script]
    assert {"device", "cores", "commit", "versions"} <= set(saved["about"])
    for group in saved["groups"]:
        assert f"**{group['title']}**, {group['unit']}" in printed
        for row in group["figures"]:
            assert row["low"] <= row["median"] <= row["high"]
            assert len(row["rounds"]) in (1, saved["about"]["rounds"])


def test_the_targets_are_those_of_groups_that_exist():
    sys.path.insert(0, str(FOLDER))
    try:
        import targets
    finally:
        sys.path.remove(str(FOLDER))
    sources = "".join(path.read_text() for path in FOLDER.glob("*.py") if path.name != "targets.py")
    titles = {title for title, *_ in [*targets.RATIOS, *targets.FIGURES]}
    assert [title for title in titles if re.split(",|:| with ", title)[0] not in sources] == []


def test_the_lost_comparisons_come_first(tmp_path):
    pytest.importorskip("matplotlib")
    ratio = {"side": "jaxspec", "setting": "other", "against": "other", "low": 1, "high": 2}
    figure = {"side": "jaxspec", "median": 2, "low": 1, "high": 3, "rounds": [1, 2, 3]}
    ratios = [ratio | {"median": 1.2}, ratio | {"median": 1.1, "target": 3, "met": False}, ratio | {"median": 0.9}]
    group = {"title": "train", "unit": "steps/s", "lower_is_better": False, "x": None}
    about = {"device": "cpu", "devices": 1, "processor": "?", "cores": 2, "load": 0.0, "python": "3.11"}
    about |= {"versions": {"jax": "1"}, "commit": "abc", "date": "2026-01-01", "rounds": 3}
    saved = {"about": about, "groups": [group | {"figures": [figure], "ratios": ratios}]}
    (tmp_path / "train.json").write_text(json.dumps(saved))
    run("report", str(tmp_path))
    page = (tmp_path / "tables.md").read_text()
    comparisons = page.partition("### Figures")[0]
    places = [comparisons.index(f"| {median} |") for median in ("1.10", "0.90", "1.20")]
    assert places == sorted(places)
    assert "| train, MLP: jaxspec, resident | hand-written loop | not measured |" in page
    assert (tmp_path / "train.png").stat().st_size > 1000
