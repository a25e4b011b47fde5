"""Trainings that are killed at any moment end as undisturbed ones do. `make crash-test` kills more often."""

import random

import crash_runs
import numpy as np
import pytest
from crash_training import Moment


@pytest.mark.slow(reason="some 25 processes train one after the other, and 20 of them are killed")
def test_trainings_that_are_killed_at_random_moments_end_with_the_same_checkpoint_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "programs"))  # a killed process writes here
    report = crash_runs.crash_test(20, 0, tmp_path / "runs")
    assert report.kills == 20
    assert len(report.events) > 3
    print(report)


@pytest.mark.slow(reason="two processes train at a time, some 15 times")
def test_two_processes_of_which_one_is_killed_end_with_the_same_checkpoint_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "programs"))
    report = crash_runs.crash_test(10, 0, tmp_path / "runs", crash_runs.run_together)
    assert report.kills == 10
    print(report)


def test_a_training_that_differs_in_one_bit_is_found(tmp_path):
    same = {"variables/w": np.zeros(3, np.float32), "step/rng": np.zeros(2, np.uint32)}
    crash_runs.check_equal(same, {name: array.copy() for name, array in same.items()})
    with pytest.raises(AssertionError, match="undisturbed run's: variables/w"):
        crash_runs.check_equal(same, {**same, "variables/w": -same["variables/w"]})


def test_a_training_that_fails_instead_of_being_killed_is_found(tmp_path):
    def run(model, model_dir, moment=None):
        return 1, [], "the error"

    with pytest.raises(AssertionError, match="the error"):
        crash_runs.crash_test(1, 0, tmp_path, run=run)


def test_the_same_seed_draws_the_same_moments():
    one, other = random.Random(7), random.Random(7)
    moments = [crash_runs.draw(one) for _ in range(100)]
    assert moments == [crash_runs.draw(other) for _ in range(100)]
    assert {moment.event for moment in moments} == set(crash_runs.MOMENTS)
    assert all(isinstance(moment, Moment) for moment in moments)
