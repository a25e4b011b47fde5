"""Evaluation and prediction: what runs on the devices while the host uses earlier results, and what is fetched."""

import types

import jax
import numpy as np
import pytest
from tiny_models import Net, data, net_model_fn, run_config

import jaxspec as js
from jaxspec._src.run.host_batches import run_batches

X, _ = data(rows=64)


class Input:
    """An infeed that yields stacks of `count` batches of two rows, while `ready` says that the next one is there."""

    rows_per_shard = 2

    def __init__(self, stacks, count, ready):
        self._left, self._count, self._ready = stacks, count, ready

    def ready(self):
        return self._ready()

    def count_ready(self, most, give_up):
        return self._count if self._left else 0

    def take(self, count):
        self._left -= 1
        return types.SimpleNamespace(data=(), start=0, count=count, capacity=count, finish=lambda outputs: None)


class Programs:
    """Programs that note each dispatch, and compute nothing."""

    def __init__(self, events):
        self._events, self._number = events, 0
        self.full, self.most_steps, self.ragged = self, 1, types.SimpleNamespace(on=lambda *args: None)
        self.devices = jax.devices()[:1]

    def __call__(self, state, batches, start, count):
        self._events.append(f"dispatch {self._number}")
        outputs = {"x": np.full((count, 1, 2), self._number)}
        self._number += 1
        return state, js.TPUEstimatorSpec(js.ModeKeys.PREDICT, predictions=outputs)


def events_of(monkeypatch, stacks, count, ready):
    """What happens, in order; `ready` is given the events so far."""
    events = []

    def device_get(leaves):
        events.append(f"fetch {leaves[0].flat[0]}")
        return leaves

    monkeypatch.setattr(jax, "device_get", device_get)
    for batch in run_batches(None, Input(stacks, count, lambda: ready(events)), Programs(events)):
        assert batch.rows == 2
        events.append(f"use {batch.spec.predictions['x'][0]}")
    return events


def test_the_next_dispatch_is_queued_before_the_results_of_one_are_used_and_no_more_than_two(monkeypatch):
    events = events_of(monkeypatch, 4, 1, ready=lambda events: True)
    assert events == [
        *["dispatch 0", "dispatch 1"],
        *["fetch 0", "dispatch 2", "use 0"],
        *["fetch 1", "dispatch 3", "use 1"],
        *["fetch 2", "use 2"],
        *["fetch 3", "use 3"],
    ]


def test_results_do_not_wait_for_an_input_that_is_not_ready(monkeypatch):
    events = events_of(monkeypatch, 3, 2, ready=lambda events: False)
    assert events == [step for i in "012" for step in (f"dispatch {i}", f"fetch {i}", f"use {i}", f"use {i}")]


def test_an_input_that_is_late_is_dispatched_between_two_batches_of_a_stack(monkeypatch):
    events = events_of(monkeypatch, 2, 3, ready=lambda events: "use 0" in events)
    assert events == ["dispatch 0", "fetch 0", "use 0", "dispatch 1", "use 0", "use 0", "fetch 1", *["use 1"] * 3]


class AsksForLogits(js.hooks.SessionRunHook):
    def __init__(self):
        self.shapes = []

    def before_run(self, run_context):
        return js.hooks.SessionRunArgs("predictions/logits")

    def after_run(self, run_context, run_values):
        self.shapes.append(run_values.results.shape)


@pytest.mark.parametrize("single", [True, False])
def test_only_the_predictions_that_are_asked_for_leave_the_devices(tmp_path, monkeypatch, single):
    config = run_config(num_shards=1)
    estimator = js.TPUEstimator(
        net_model_fn, Net(), model_dir=tmp_path, params={}, predict_batch_size=16, config=config
    )
    fetched, device_get = [], jax.device_get

    def note(tree):
        if isinstance(tree, js.TPUEstimatorSpec):
            fetched.append(set(tree.predictions))
        return device_get(tree)

    def input_fn():
        return [X[:16], X[16:32], X[32:37]]

    monkeypatch.setattr(jax, "device_get", note)
    rows = [p["row"] for p in estimator.predict(input_fn, predict_keys="row", yield_single_examples=single)]
    np.testing.assert_array_equal(np.concatenate([np.atleast_1d(row) for row in rows]), X[:37, 0])
    assert fetched == [{"row"}] * len(fetched)
    hook = AsksForLogits()
    keys = [set(p) for p in estimator.predict(input_fn, "row", hooks=[hook], yield_single_examples=single)]
    assert keys == [{"row"}] * len(keys)
    assert hook.shapes == [(16, 3), (16, 3), (5, 3)]
