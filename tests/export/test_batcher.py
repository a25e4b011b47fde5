"""Calls that are joined return what each would return alone."""

import concurrent.futures
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exports import ROWS, model_fn, predicted, receiver_fn, shape, trained

import jaxspec as js
from jaxspec.export import Batcher, LoadedSignature, PredictOutput, load

CALLS = 24


class Recorder:
    """Makes the first run of a signature wait until all calls are there, and notes the rows of each run."""

    def __init__(self, monkeypatch, error=None):
        self.rows, self.error = [], error
        self._checked, self._all_there = 0, threading.Event()
        self._check, self._call, self._lock = LoadedSignature.check, LoadedSignature.__call__, threading.Lock()
        monkeypatch.setattr(LoadedSignature, "check", lambda signature, **arrays: self.check(signature, arrays))
        monkeypatch.setattr(LoadedSignature, "__call__", lambda signature, **arrays: self.run(signature, arrays))

    def check(self, signature, arrays):
        with self._lock:
            self._checked += 1
            if self._checked >= CALLS:
                self._all_there.set()
        return self._check(signature, **arrays)

    def run(self, signature, arrays):
        assert self._all_there.wait(60)
        self.rows.append(len(next(iter(arrays.values()))))
        if self.error is not None:
            raise self.error
        return self._call(signature, **arrays)


def at_once(batcher, requests):
    """What each call of a thread of its own returns or raises."""

    def ask(arrays):
        try:
            return batcher(**arrays)
        except BaseException as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(CALLS) as threads:
        return list(threads.map(ask, requests))


def some_rows(i):
    return np.roll(ROWS, i, axis=0)[: 1 + i % 3]


def test_calls_that_come_while_one_runs_are_one_batch(estimator, exported, monkeypatch):
    batcher, recorder = Batcher(load(exported).signatures["serving_default"]), Recorder(monkeypatch)
    answers = at_once(batcher, [{"x": some_rows(i)} for i in range(CALLS)])
    for i, answer in enumerate(answers):
        want = predicted(estimator, {"x": some_rows(i)})
        np.testing.assert_array_equal(answer["class"], want["class"])
        np.testing.assert_allclose(answer["probabilities"], want["probabilities"], rtol=1e-5)
    assert len(recorder.rows) < CALLS
    assert set(recorder.rows) <= {1, 2, 4, 8, 16, 32, 64}


@pytest.mark.parametrize("options", [{"max_rows": 4}, {"batch_sizes": [3, 8]}], ids=["max_rows", "batch_sizes"])
def test_a_batch_is_no_larger_than_it_may_be(estimator, tmp_path, monkeypatch, options):
    sizes = options.pop("batch_sizes", None)
    path = estimator.export_saved_model(tmp_path, receiver_fn(), batch_sizes=sizes)
    batcher, recorder = Batcher(load(path).signatures["serving_default"], **options), Recorder(monkeypatch)
    answers = at_once(batcher, [{"x": some_rows(i)} for i in range(CALLS)])
    want = predicted(estimator, {"x": ROWS})["class"]
    for i, answer in enumerate(answers):
        np.testing.assert_array_equal(answer["class"], np.roll(want, i)[: 1 + i % 3])
    assert set(recorder.rows) <= ({3, 8} if sizes else {1, 2, 4})
    assert batcher.max_rows == (8 if sizes else 4)


def test_rows_of_other_shapes_are_no_batch(tmp_path, monkeypatch):
    def summed(variables, features, labels, mode, params):
        return model_fn(variables, {"x": features["x"].sum(1)}, labels, mode, params)

    def rows(i):
        return np.resize(ROWS, (1 + i % 3, 1 + i % 2, 4))

    x = np.resize(ROWS, (8, 5, 4))
    estimator = trained(tmp_path / "model", summed, input_fn=lambda: [({"x": x}, np.zeros(8, np.int32))])
    signature = load(estimator.export_saved_model(tmp_path / "x", receiver_fn(x=shape(None, 4)))).signatures
    want = [jax.device_get(signature["serving_default"](x=rows(i))) for i in range(6)]
    Recorder(monkeypatch)
    answers = at_once(Batcher(signature["serving_default"]), [{"x": rows(i)} for i in range(CALLS)])
    for i, answer in enumerate(answers):
        np.testing.assert_allclose(answer["probabilities"], want[i % 6]["probabilities"], rtol=1e-5)


def outputs(logits, features):
    return {
        "serving_default": PredictOutput({"centred": logits - logits.mean(0)}),
        "named": PredictOutput({"logits": logits, "names": jnp.arange(3)}),
    }


def test_what_is_not_of_the_rows(tmp_path, monkeypatch):
    estimator = trained(tmp_path / "model", outputs=outputs)
    signatures = load(estimator.export_saved_model(tmp_path / "x", receiver_fn())).signatures
    want = [jax.device_get(signatures["serving_default"](x=some_rows(i))) for i in range(CALLS)]
    recorder = Recorder(monkeypatch)
    answers = at_once(Batcher(signatures["serving_default"]), [{"x": some_rows(i)} for i in range(CALLS)])
    for answer, alone in zip(answers, want, strict=True):
        np.testing.assert_array_equal(answer["centred"], alone["centred"])
    assert sorted(recorder.rows) == sorted(len(some_rows(i)) for i in range(CALLS))
    for answer in at_once(Batcher(signatures["named"]), [{"x": some_rows(i)} for i in range(CALLS)]):
        np.testing.assert_array_equal(answer["names"], [0, 1, 2])


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_an_error_reaches_all_who_wait(exported, monkeypatch, error):
    batcher = Batcher(load(exported).signatures["serving_default"])
    with monkeypatch.context() as patch:
        Recorder(patch, error)
        assert at_once(batcher, [{"x": some_rows(i)} for i in range(CALLS)]) == [error] * CALLS
    assert batcher(x=ROWS[:3])["class"].shape == (3,)


def test_wrong_calls_harm_nobody(exported, monkeypatch):
    requests = [{"x": some_rows(i) if i % 2 else np.zeros((1, 5))} for i in range(CALLS)]
    Recorder(monkeypatch)
    answers = at_once(Batcher(load(exported).signatures["serving_default"]), requests)
    for i, answer in enumerate(answers):
        if i % 2:
            assert answer["class"].shape == (1 + i % 3,)
        else:
            assert "'x' must be float32[batch,4], got float32[1,5]" in str(answer)


def test_wrong_sizes(exported):
    with pytest.raises(ValueError, match="max_rows should be > 0, got 0. Write Batcher"):
        js.export.Batcher(load(exported).signatures["serving_default"], max_rows=0)
