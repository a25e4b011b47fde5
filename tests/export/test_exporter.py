"""Which evaluations lead to an export, and which exports stay."""

import json
import os

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import counting_init, counting_input, counting_model_fn, run_config

import jaxspec as js
from jaxspec import BestExporter, EvalSpec, Exporter, FinalExporter, LatestExporter, TrainSpec, train_and_evaluate
from jaxspec._src.base import buckets

SCORES = [3.0, 2.0, 2.5, 2.0, 1.0, 1.5, 0.5, 4.0]


class RecordingEstimator:
    """Makes directories for exports, and notes what it was asked for."""

    def __init__(self, model_dir):
        self.model_dir, self.calls = str(model_dir), []

    def export_saved_model(self, export_dir_base, serving_input_receiver_fn, assets_extra=None, checkpoint_path=None):
        self.calls.append((export_dir_base, serving_input_receiver_fn, assets_extra, checkpoint_path))
        os.makedirs(export_dir_base, exist_ok=True)
        number = max([1_000_000_000, *(int(name) for name in folders(export_dir_base) if len(name) == 10)]) + 1
        path = os.path.join(export_dir_base, str(number))
        os.makedirs(path)
        with open(os.path.join(path, "weights"), "w") as file:
            file.write(str(checkpoint_path))
        return path.encode()


def folders(path):
    """The exports, and other directories, in a directory."""
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir()) if os.path.isdir(path) else []


def export(exporter, path, result, *, estimator=None, number=0, final=False):
    """One call, as train_and_evaluate makes it."""
    return exporter.export(
        estimator=estimator or RecordingEstimator(path.parent),
        export_path=str(path),
        checkpoint_path=f"ckpt-{number}",
        eval_result=result,
        is_the_final_export=final,
    )


def exported(exporter, path, scores, name="loss"):
    """The numbers of the scores that led to an export; the last one is the final one."""
    last = len(scores) - 1
    return [
        i
        for i, score in enumerate(scores)
        if export(exporter, path, {name: np.float32(score), "global_step": i}, number=i, final=i == last) is not None
    ]


def test_they_are_exporters_with_a_name(tmp_path):
    for exporter in (FinalExporter("x", None), LatestExporter("x", None), BestExporter("x")):
        assert isinstance(exporter, Exporter)
        assert exporter.name == "x"
    assert BestExporter().name == "best_exporter"
    with pytest.raises(TypeError, match="abstract"):
        Exporter()


@pytest.mark.parametrize("kind", [FinalExporter, LatestExporter, BestExporter])
def test_what_the_estimator_is_asked_for(tmp_path, kind):
    def receiver():
        return None

    estimator, assets = RecordingEstimator(tmp_path), {"a.txt": "/tmp/a.txt"}
    exporter = kind("x", receiver, assets_extra=assets, as_text=True)
    path = export(exporter, tmp_path / "x", {"loss": 1.0}, estimator=estimator, number=7, final=True)
    assert estimator.calls == [(str(tmp_path / "x"), receiver, assets, "ckpt-7")]
    assert path == os.fsencode(tmp_path / "x" / "1000000001")


def test_the_final_exporter_exports_at_the_end_alone(tmp_path):
    assert exported(FinalExporter("x", None), tmp_path / "x", SCORES) == [7]
    assert export(FinalExporter("x", None), tmp_path / "y", {"loss": 1.0}) is None
    assert folders(tmp_path / "y") == []


@pytest.mark.parametrize(("keep", "left"), [(2, 2), (None, 8), (20, 8)])
def test_the_latest_exporter_keeps_the_newest(tmp_path, keep, left):
    path = tmp_path / "x"
    assert exported(LatestExporter("x", None, exports_to_keep=keep), path, SCORES) == list(range(8))
    kept = [(path / name / "weights").read_text() for name in folders(path)]
    assert kept == [f"ckpt-{i}" for i in range(8 - left, 8)]


def test_five_exports_are_kept_unless_told_otherwise(tmp_path):
    exported(LatestExporter("x", None), tmp_path / "x", SCORES)
    exported(BestExporter(), tmp_path / "y", [*sorted(SCORES, reverse=True), 0.4, 0.3, 0.2])
    assert (len(folders(tmp_path / "x")), len(folders(tmp_path / "y"))) == (5, 5)


def test_only_directories_named_by_ten_digits_are_removed(tmp_path):
    path = tmp_path / "x"
    for name in ("notes", "123", "00000000011", "0000000001"):
        (path / name).mkdir(parents=True)
    (path / "9999999999").write_text("a file")
    exported(LatestExporter("x", None, exports_to_keep=1), path, [1.0])
    assert folders(path) == ["00000000011", "1000000001", "123", "notes"]
    assert (path / "9999999999").exists()


def test_an_export_that_cannot_be_removed_stays_with_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(path):
        raise PermissionError("not yours")

    monkeypatch.setattr("shutil.rmtree", refuse)
    exported(LatestExporter("x", None, exports_to_keep=1), tmp_path / "x", [2.0, 1.0])
    assert len(folders(tmp_path / "x")) == 2
    assert "Can not delete the old export 1000000001: not yours" in caplog.text


# The best one.


def test_the_best_exporter_exports_what_is_better(tmp_path):
    path = tmp_path / "x"
    assert exported(BestExporter(exports_to_keep=2), path, SCORES) == [0, 1, 4, 6]
    assert folders(path) == ["1000000003", "1000000004"]
    assert (path / "1000000004" / "weights").read_text() == "ckpt-6"


def test_it_compares_by_a_function(tmp_path):
    def higher(current_eval_result, best_eval_result):
        return current_eval_result["loss"] > best_eval_result["loss"]

    assert exported(BestExporter(compare_fn=higher), tmp_path / "x", SCORES) == [0, 7]


@pytest.mark.parametrize("pattern", ["eval/*.tfevents.*", None])
def test_it_remembers_the_best_across_restarts(tmp_path, pattern):
    path = tmp_path / "x"
    assert exported(BestExporter(event_file_pattern=pattern), path, SCORES[:5]) == [0, 1, 4]
    assert exported(BestExporter(event_file_pattern=pattern), path, [1.5, 1.0, 0.9]) == [2]
    assert exported(BestExporter(event_file_pattern=pattern), path, [0.9, -0.5]) == [1]
    assert len(folders(path)) == 5


def test_without_its_directory_it_begins_anew(tmp_path):
    exporter = BestExporter()
    assert exported(exporter, tmp_path / "x", [1.0]) == [0]
    assert exported(exporter, tmp_path / "y", [5.0, 6.0, 4.0]) == [0, 2]
    assert exported(exporter, tmp_path / "x", [2.0, 0.5]) == [1]


def test_a_loss_of_float32_is_not_better_than_itself_after_a_restart(tmp_path):
    assert exported(BestExporter(), tmp_path / "x", [0.1]) == [0]
    assert exported(BestExporter(), tmp_path / "x", [0.1]) == []


def test_a_loss_may_be_an_array_of_jax(tmp_path):
    losses = [jnp.float32(2.0), jnp.float32(3.0), np.asarray(1.0)]
    exports = [export(BestExporter(), tmp_path / "x", {"loss": loss}) for loss in losses]
    assert [path is not None for path in exports] == [True, False, True]


def test_any_loss_is_better_than_nan(tmp_path):
    assert exported(BestExporter(), tmp_path / "x", [np.nan, np.nan, 5.0, np.nan, 4.0]) == [0, 2, 4]


def test_the_best_result_comes_back_as_it_was(tmp_path):
    seen = []

    def compare_fn(best_eval_result, current_eval_result):
        seen.append(best_eval_result)
        return False

    result = {
        "loss": np.float32(0.1),
        "global_step": np.int64(3),
        "infinite": float("inf"),
        "confusion": np.arange(4, dtype=np.int32).reshape(2, 2),
        "names": ["a", "b"],
    }
    exporter = BestExporter(compare_fn=compare_fn)
    export(exporter, tmp_path / "x", result)
    assert export(exporter, tmp_path / "x", result) is None
    (best,) = seen
    assert best.keys() == result.keys()
    confusion = best.pop("confusion")
    np.testing.assert_array_equal(confusion, [[0, 1], [2, 3]])
    assert confusion.dtype == np.int32
    assert best == {"loss": float(np.float32(0.1)), "global_step": 3, "infinite": float("inf"), "names": ["a", "b"]}


def test_a_value_that_cannot_be_kept_is_left_out_with_a_warning(tmp_path, caplog):
    export(BestExporter(), tmp_path / "x", {"loss": 1.0, "odd": object()})
    assert "BestExporter cannot keep the metric odd" in caplog.text
    assert json.loads((tmp_path / "x" / "best_eval_result.json").read_text()) == {"loss": 1.0}


def test_the_file_is_whole_at_any_moment(tmp_path, monkeypatch):
    path = tmp_path / "x"
    exported(BestExporter(), path, [2.0])
    before = (path / "best_eval_result.json").read_text()

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            exported(BestExporter(), path, [1.0])
    assert (path / "best_eval_result.json").read_text() == before
    assert exported(BestExporter(), path, [1.0]) == [0]


def test_an_export_that_fails_is_tried_again(tmp_path):
    class Failing(RecordingEstimator):
        def export_saved_model(self, *args, **kwargs):
            raise OSError("disk full")

    path = tmp_path / "x"
    with pytest.raises(OSError, match="disk full"):
        export(BestExporter(), path, {"loss": 1.0}, estimator=Failing(tmp_path))
    assert exported(BestExporter(), path, [2.0]) == [0]


@pytest.mark.parametrize("text", ["{", "[]", "null", ""])
def test_a_damaged_file(tmp_path, text):
    path = tmp_path / "x"
    path.mkdir()
    (path / "best_eval_result.json").write_text(text)
    with pytest.raises(ValueError, match="best_eval_result.json does not hold the best result .* Delete it"):
        exported(BestExporter(), path, [1.0])


@pytest.mark.parametrize(
    ("results", "which"),
    [
        ([{"score": 1.0}, {"score": 2.0}], "best_eval_result"),
        ([{"loss": 1.0}, {"score": 2.0}], "current_eval_result"),
    ],
)
def test_results_without_a_loss(tmp_path, results, which):
    assert export(BestExporter(), tmp_path / "x", results[0]) is not None
    message = rf"{which} cannot be empty or no loss is found in it. It holds \['score'\]; pass BestExporter\(compare_fn"
    with pytest.raises(ValueError, match=message):
        export(BestExporter(), tmp_path / "x", results[1])
    assert folders(tmp_path / "x") == ["1000000001"]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: BestExporter(compare_fn=None), ValueError, "`compare_fn` must not be None. Write compare_fn"),
        (lambda: BestExporter(compare_fn=3), TypeError, "compare_fn must be callable, given: 3. Write compare_fn"),
        (
            lambda: BestExporter(compare_fn=lambda best_eval_result: True),
            ValueError,
            r"compare_fn \(.*lambda.*\) must include current_eval_result argument. .*add `current_eval_result`",
        ),
        (
            lambda: BestExporter(compare_fn=lambda current_eval_result: True),
            ValueError,
            r"must include best_eval_result argument",
        ),
        (
            lambda: BestExporter(compare_fn=lambda best_eval_result, current_eval_result, extra: True),
            ValueError,
            r"has following not expected args: \['extra'\].*may name any of \['best_eval_result', 'current_eval_result'\]",
        ),
        (
            lambda: BestExporter(exports_to_keep=0),
            ValueError,
            "exports_to_keep should be > 0, got 0. None keeps all exports",
        ),
        (
            lambda: LatestExporter("l", None, exports_to_keep=-1),
            ValueError,
            "exports_to_keep should be > 0, got -1. None keeps all exports",
        ),
        (lambda: LatestExporter(), TypeError, "'name'"),
        (lambda: FinalExporter(), TypeError, "'name'"),
    ],
)
def test_what_they_refuse(make, error, message):
    with pytest.raises(error, match=message):
        make()


# In a run.


def test_in_train_and_evaluate(tmp_path):
    class Exporting(js.TPUEstimator):
        export_saved_model = RecordingEstimator.export_saved_model
        calls = ()

        def __init__(self):
            config = run_config(save=2, num_shards=1)
            sizes = {"train_batch_size": 4, "eval_batch_size": 4}
            super().__init__(counting_model_fn, counting_init, model_dir=tmp_path, config=config, **sizes)
            self.calls = []

    def run(max_steps, evaluations):
        values = iter(evaluations)
        exporters = [BestExporter(), LatestExporter("latest", None, exports_to_keep=1), FinalExporter("final", None)]
        spec = EvalSpec(
            lambda: [{"x": np.full(4, next(values), np.float32)}], steps=1, exporters=exporters, throttle_secs=0
        )
        return train_and_evaluate(Exporting(), TrainSpec(counting_input(), max_steps), spec)[1]

    def contents(name):
        path = tmp_path / "export" / name
        return [os.path.basename((path / folder / "weights").read_text()) for folder in folders(path)]

    # Evaluations at steps 2, 4, 5; then 7.
    best, latest, final = run(5, [3.0, 2.0, 2.5])
    assert best is None
    assert latest is not None
    assert os.path.isdir(final)
    assert contents("best_exporter") == ["model.ckpt-2", "model.ckpt-4"]
    assert contents("latest") == ["model.ckpt-5"]
    assert contents("final") == ["model.ckpt-5"]
    run(7, [2.2])
    assert contents("best_exporter") == ["model.ckpt-2", "model.ckpt-4"]
    assert contents("final") == ["model.ckpt-5", "model.ckpt-7"]


def test_exports_and_the_best_result_may_be_in_a_bucket(bucket):
    class InBucket(RecordingEstimator):
        def export_saved_model(self, export_dir_base, *args, **kwargs):
            self.calls.append(export_dir_base)
            path = f"{export_dir_base}/{1_000_000_000 + len(self.calls)}"
            buckets.write(f"{path}/weights", b"")
            return path

    estimator = InBucket(bucket.directory)
    for number, loss in enumerate([3.0, 2.0, 4.0, 1.0]):
        # Each call is that of a new process.
        path = f"{bucket.directory}/export/best"
        BestExporter(exports_to_keep=2).export(estimator, path, f"ckpt-{number}", {"loss": loss}, False)
    assert set(buckets.objects_under(path)) == {
        "1000000002/weights",
        "1000000003/weights",
        "best_eval_result.json",
    }
    assert json.loads(buckets.read(f"{path}/best_eval_result.json")) == {"loss": 1.0}
