"""Training: the next loop is on the devices before the outputs of one are fetched, and no more than two are there."""

import pytest
from tiny_models import data, linear_init, linear_model_fn, run_config

import jaxspec as js
from jaxspec._src.data.prefetch import Infeed
from jaxspec._src.device.program import Program
from jaxspec._src.run.in_flight import InFlight

X, Y = data(rows=64)


@pytest.fixture
def events(monkeypatch):
    """What training does, in order, with an input that is always ready and devices that are always busy."""
    found = []
    call, look = Program.__call__, InFlight.look_at_first

    def dispatch(self, state, batches, start, count):
        found.append("dispatch")
        return call(self, state, batches, start, count)

    def fetch(self, **kwargs):
        look(self, **kwargs)
        found.append("fetch")

    monkeypatch.setattr(Program, "__call__", dispatch)
    monkeypatch.setattr(InFlight, "look_at_first", fetch)
    monkeypatch.setattr(InFlight, "look_at_ready", lambda self: None)
    monkeypatch.setattr(Infeed, "ready", lambda self: True)
    return found


def estimator(model_dir, every, **kwargs):
    return js.TPUEstimator(
        linear_model_fn,
        linear_init,
        model_dir=model_dir,
        config=run_config(every=every, num_shards=2, **kwargs),
        train_batch_size=8,
    )


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("every", [1, 3])
def test_a_loop_is_dispatched_before_the_one_before_it_is_fetched(tmp_path, events, every, resident):
    input_fn = js.inputs.numpy_input_fn(X, Y, num_epochs=None, resident=resident)
    estimator(tmp_path, every).train(input_fn, steps=12)
    dispatches = events.count("dispatch")
    assert dispatches >= 12 // every
    assert events == ["dispatch", *["dispatch", "fetch"] * (dispatches - 1), "fetch"]


def test_the_hooks_of_a_loop_do_not_wait_for_it(tmp_path, events):
    class Counts(js.hooks.SessionRunHook):
        def after_run(self, run_context, run_values):
            events.append("after_run")

    input_fn = js.inputs.numpy_input_fn(X, Y, num_epochs=None)
    estimator(tmp_path, 1).train(input_fn, hooks=[Counts()], steps=3)
    one = ["dispatch", "after_run"]
    another = ["dispatch", "fetch", "after_run"]
    assert events == [*one, *another, *another, "fetch"]
