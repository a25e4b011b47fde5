"""Exporters that write real exports: in a run, and in runs that are killed."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from exports import ROWS, init_fn, model_fn, receiver_fn, trained

import jaxspec as js

PROGRAM = pathlib.Path(__file__).parents[1] / "support" / "export_program.py"


def exports_in(path):
    return sorted(name for name in os.listdir(path) if re.fullmatch(r"\d{10}", name)) if os.path.isdir(path) else []


def steps(path):
    """The global steps of the exports, each of which is loaded and run."""
    loaded = [js.export.load(os.path.join(path, name)) for name in exports_in(path)]
    assert all(one(x=ROWS)["class"].shape == (24,) for one in loaded)
    return [one.content["global_step"] for one in loaded]


def is_of_step_2(best_eval_result, current_eval_result):
    return current_eval_result["global_step"] == 2


def test_in_train_and_evaluate(tmp_path):
    config = js.RunConfig(js.TPUConfig(num_shards=1), save_checkpoints_steps=1)
    sizes = {"train_batch_size": 8, "eval_batch_size": 8, "predict_batch_size": 8}
    estimator = js.TPUEstimator(model_fn, init_fn, model_dir=tmp_path, config=config, params={}, **sizes)
    batch = {"x": ROWS[:8]}, np.zeros(8, np.int32)
    exporters = [
        js.BestExporter("best", receiver_fn(), compare_fn=is_of_step_2, exports_to_keep=1),
        js.LatestExporter("latest", receiver_fn(), exports_to_keep=2),
        js.FinalExporter("final", receiver_fn(), {"notes.txt": __file__}),
    ]
    _, paths = js.train_and_evaluate(
        estimator,
        js.TrainSpec(lambda: [batch] * 3, max_steps=3),
        js.EvalSpec(lambda: [batch], exporters=exporters, throttle_secs=0),
    )
    assert {name: steps(tmp_path / "export" / name) for name in ("best", "latest", "final")} == {
        "best": [2],
        "latest": [2, 3],
        "final": [3],
    }
    best, latest, final = paths
    assert best is None
    assert os.path.dirname(latest) == str(tmp_path / "export" / "latest")
    assert pathlib.Path(final, "assets.extra", "notes.txt").exists()
    assert json.loads((tmp_path / "export" / "best" / "best_eval_result.json").read_text())["global_step"] == 2


def test_what_a_killed_run_has_left_is_removed(tmp_path):
    estimator = trained(tmp_path / "model")
    path = tmp_path / "model" / "export" / "x"
    for name in ("temp-1700000000", "1700000001/programs", "1700000002"):
        (path / name).mkdir(parents=True)
    js.LatestExporter("x", receiver_fn(), exports_to_keep=None).export(estimator, str(path), None, {}, False)
    assert sorted(os.listdir(path))[0] == "1700000002"  # it may be of an estimator that writes exports of another kind
    assert len(os.listdir(path)) == 2


def run(model_dir, export_path, keep, number):
    """(exit code, the operations on files)."""
    command = [sys.executable, str(PROGRAM), str(model_dir), str(export_path), str(keep), str(number)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, -9), done.stderr
    return done.returncode, done.stdout.splitlines()


def published(operations):
    """The numbers, from 1, of the operations by which an export appears."""
    return [i for i, line in enumerate(operations, 1) if re.fullmatch(r"os.rename .*/temp-\d{10} .*/\d{10}", line)]


def removed(operations):
    """The numbers of the operations by which the removal of an export begins."""
    return [i for i, line in enumerate(operations, 1) if re.match(r"os.remove .*/signature.json", line)]


@pytest.mark.slow(reason="a dozen processes export, and all but two of them are killed")
def test_kill_9_at_any_operation_loses_no_export(tmp_path):
    trained(tmp_path / "model")
    code, operations = run(tmp_path / "model", tmp_path / "undisturbed", 2, 0)
    assert code == 0
    assert (len(published(operations)), len(removed(operations))) == (3, 1)
    # Around each export, and from the last one to the end of the clean-up.
    moments = {i + after for i in published(operations) for after in (0, 1)}
    moments |= set(range(published(operations)[-1], len(operations) + 1))
    for moment in sorted(moments):
        path = tmp_path / f"killed-{moment}"
        code, operations = run(tmp_path / "model", path, 2, moment)
        assert code == -9
        done = operations[:-1]  # it is killed before the last one
        whole = [name for name in exports_in(path) if (path / name / "signature.json").exists()]
        assert len(whole) == len(published(done)) - len(removed(done))
        assert [js.export.load(path / name).content["global_step"] for name in whole] == [1] * len(whole)
    # The last one was killed in the clean-up. The next run completes it, and has nothing better to export.
    js.LatestExporter("x", receiver_fn(), exports_to_keep=2).export(
        trained(tmp_path / "model"), str(path), None, {}, False
    )
    assert steps(path) == [1, 1]
    assert len([name for name in os.listdir(path) if name != "best_eval_result.json"]) == 2
