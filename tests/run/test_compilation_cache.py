"""RunConfig(compilation_cache_dir=): the second process compiles nothing; JAX's own setting wins."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from tiny_models import counting_init, counting_model_fn

import jaxspec as js

SUPPORT = Path(__file__).parent.parent / "support"
# A process that trains, evaluates and predicts, and counts what JAX says about its cache.
PROGRAM = """
import collections, json, sys
import jax
counts = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: counts.update([event.rpartition("/")[2]]))
import jaxspec as js
from tiny_models import batches, data, linear_init, linear_model_fn, run_config

config = run_config(compilation_cache_dir=sys.argv[2], log_step_count_steps=None)
estimator = js.TPUEstimator(linear_model_fn, linear_init, model_dir=sys.argv[1], config=config,
                            train_batch_size=8, eval_batch_size=8, predict_batch_size=8)
x, y = data(16)
estimator.train(lambda: batches(x, y, size=8), steps=2)
estimator.evaluate(lambda: batches(x, y, size=8))
list(estimator.predict(lambda: iter([x[:8], x[8:]])))
print(json.dumps([counts["compile_requests_use_cache"], counts["cache_hits"], jax.config.jax_compilation_cache_dir]))
"""


def run(model_dir, cache, **environment):
    """(programs that the process needed, those that the cache had, the directory of the cache)."""
    # The tests set JAX's own cache and its thresholds.
    ours = ("JAX_COMPILATION_", "JAX_PERSISTENT_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    paths = os.pathsep.join([str(SUPPORT), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(model_dir), str(cache)],
        env={**inherited, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check_the_second_process_compiles_nothing(tmp_path, cache):
    needed, found, used = run(tmp_path / "first", cache)
    assert used == str(cache)
    assert needed > found
    again, found, _ = run(tmp_path / "second", cache)
    assert again == found == needed


@pytest.mark.slow("starts two processes that compile")
def test_the_second_process_compiles_nothing(tmp_path):
    check_the_second_process_compiles_nothing(tmp_path, tmp_path / "cache")


@pytest.mark.slow("starts two processes that compile")
def test_nor_does_it_where_the_cache_is_in_a_bucket(tmp_path, bucket):
    check_the_second_process_compiles_nothing(tmp_path, f"{bucket.directory}/cache")


@pytest.mark.slow("starts a process that compiles")
def test_jaxs_own_setting_wins(tmp_path):
    *_, used = run(tmp_path / "run", tmp_path / "cache", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own"))
    assert used == str(tmp_path / "own")
    assert not (tmp_path / "cache").exists()


@pytest.fixture
def jax_setting():
    """Sets JAX's cache and its threshold for one test. Nothing may be compiled meanwhile."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}

    def update(directory, secs):
        for name, value in zip(names, (directory, secs), strict=True):
            jax.config.update(name, value)

    yield update
    update(*before.values())


def make_estimator(tmp_path, cache):
    config = js.RunConfig(compilation_cache_dir=cache)
    return js.TPUEstimator(counting_model_fn, counting_init, model_dir=tmp_path, config=config, train_batch_size=4)


def setting():
    return jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs


def test_it_is_jaxs_cache_from_the_first_estimator_on_and_small_programs_are_kept(tmp_path, jax_setting, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jax_setting(None, 1.0)
    js.RunConfig(compilation_cache_dir="cache")
    assert setting() == (None, 1.0)
    make_estimator(tmp_path, "cache")
    assert setting() == (str(tmp_path / "cache"), 0.0)


def test_a_threshold_that_the_user_has_set_stays(tmp_path, jax_setting):
    jax_setting(None, 5.0)
    make_estimator(tmp_path, tmp_path / "cache")
    assert setting() == (str(tmp_path / "cache"), 5.0)


def test_another_directory_is_ignored_with_a_warning(tmp_path, jax_setting, caplog):
    jax_setting("/its/own", 1.0)
    make_estimator(tmp_path, "/another")
    assert setting() == ("/its/own", 1.0)
    (record,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert record.getMessage() == (
        "RunConfig(compilation_cache_dir='/another') is ignored: a process has one compilation cache, and that of this "
        "one is already '/its/own', set by jax_compilation_cache_dir, JAX_COMPILATION_CACHE_DIR or another estimator. "
        "Leave compilation_cache_dir as None, or name the same directory."
    )


def test_the_same_directory_is_no_conflict(tmp_path, jax_setting, caplog):
    jax_setting(str(tmp_path / "cache"), 1.0)
    make_estimator(tmp_path, tmp_path / "cache")
    assert setting() == (str(tmp_path / "cache"), 0.0)
    assert not caplog.records


def test_without_one_jaxs_setting_is_left_alone(tmp_path, jax_setting):
    jax_setting(None, 1.0)
    make_estimator(tmp_path, None)
    assert setting() == (None, 1.0)


def test_it_is_the_path_of_a_directory():
    with pytest.raises(TypeError, match=r"^compilation_cache_dir must be a path, got 5\.$"):
        js.RunConfig(compilation_cache_dir=5)
    with pytest.raises(ValueError, match=r"^compilation_cache_dir is empty: name a directory, or leave it as None\.$"):
        js.RunConfig(compilation_cache_dir="")
    assert js.RunConfig(compilation_cache_dir="gs://bucket/cache").compilation_cache_dir == "gs://bucket/cache"
