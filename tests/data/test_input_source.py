"""Whose the input is: one thread runs it, what the user made stays the user's, and errors of it are told."""

import contextvars
import functools
import gc
import logging
import threading

import jax
import numpy as np
import pytest
from take import take
from tiny_models import counting_init, counting_input, counting_model_fn, run_config

import jaxspec as js
from jaxspec._src.data import batch as batch_module
from jaxspec._src.data import elements, input_source
from jaxspec._src.data.input_request import InputRequest
from jaxspec._src.data.lent_iterators import InputMemory
from jaxspec._src.data.prefetch import Infeed
from jaxspec.hooks import SessionRunHook, StopAtStepHook

ROWS = 4


def recording(seen):
    """The counting model, which writes the first number of each batch that it trains on to `seen`."""

    def model_fn(variables, features, mode):
        spec = counting_model_fn(variables, features, mode)
        return spec._replace(host_call=(lambda x: seen.append(int(x[0])), [features["x"]]))

    return model_fn


def estimator(path, seen=None, every=100, **kwargs):
    kwargs = {"train_batch_size": ROWS, "eval_batch_size": ROWS, "predict_batch_size": ROWS, **kwargs}
    model_fn = counting_model_fn if seen is None else recording(seen)
    config = run_config(every=every, num_shards=1)
    return js.TPUEstimator(model_fn, counting_init, model_dir=path, config=config, **kwargs)


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and r.name == "jaxspec"]


def infeed_threads():
    return [thread for thread in threading.enumerate() if thread.name == "jaxspec-infeed"]


class Own:
    """Batches of the user's, with everything that a loader may have."""

    def __init__(self, count=1000, fail_at=None, close_error=None):
        self.i, self.count, self.fail_at, self.close_error = 0, count, fail_at, close_error
        self.threads, self.closed = set(), 0

    def __iter__(self):
        self.threads.add(threading.get_ident())
        return self

    def __next__(self):
        self.threads.add(threading.get_ident())
        if self.i == self.fail_at:
            raise ValueError("corrupt record 17")
        if self.i == self.count:
            raise StopIteration
        self.i += 1
        return {"x": np.full(ROWS, self.i - 1, np.float32)}

    def close(self):
        self.threads.add(threading.get_ident())
        self.closed += 1
        if self.close_error:
            raise self.close_error


class Positioned(Own):
    def get_state(self):
        self.threads.add(threading.get_ident())
        return {"i": self.i}

    def set_state(self, state):
        self.threads.add(threading.get_ident())
        self.i = state["i"]


# One thread, and the caller's context.


@pytest.mark.parametrize("verb", ["train", "evaluate", "predict"])
def test_all_of_the_input_runs_in_one_thread_which_is_gone_afterwards(tmp_path, verb):
    threads = set()

    def input_fn():
        threads.add(threading.get_ident())
        loader = Positioned(count=5)
        loader.threads = threads
        return loader

    run = getattr(estimator(tmp_path), verb)(input_fn)
    if verb == "predict":
        assert len(list(run)) == 5 * ROWS
    assert len(threads) == 1
    assert threads != {threading.get_ident()}
    assert infeed_threads() == []


def test_the_second_run_goes_on_and_begins_again_in_one_thread_each(tmp_path):
    threads = []

    def input_fn():
        made = Positioned(count=3)
        threads.append(made.threads)
        return made

    made = estimator(tmp_path)
    made.train(input_fn)
    made.train(input_fn)  # at the end of the input: it begins again
    first, at_the_end, again = threads
    assert len(first) == 1
    assert len(at_the_end | again) == 1


def test_the_input_has_the_callers_context(tmp_path):
    name = contextvars.ContextVar("name", default="nobody")
    seen = []

    def input_fn():
        for batch in counting_input(3)():
            seen.append((name.get(), jax.config.jax_default_device))
            name.set("changed in the input")
            yield batch

    name.set("caller")
    device = jax.devices()[1]
    with jax.default_device(device):
        estimator(tmp_path).train(input_fn)
    assert seen == [("caller", device)] + [("changed in the input", device)] * 2
    assert name.get() == "caller"


def test_sixty_four_bits_are_kept_where_the_caller_enabled_them():
    with jax.enable_x64(True):
        feed = Infeed(
            InputRequest(
                lambda: [np.zeros(4, np.float64)] * 3,
                mode="train",
                devices=jax.devices()[:1],
                batch_size=4,
                ragged=False,
            )
        )
        feed.start(1)
        taken = [take(feed, 1) for _ in range(3)]
    feed.close()
    assert [item.data[0].dtype for item in taken] == [np.float64] * 3


@pytest.mark.parametrize("where", ["call", "iter", "first", "later"])
def test_errors_of_the_input_come_back_as_themselves_and_no_thread_stays(tmp_path, where):
    class Broken:
        def __iter__(self):
            if where == "iter":
                raise KeyError(where)
            for i in range(3):
                if where == ("later" if i else "first"):
                    raise KeyError(where)
                yield {"x": np.zeros(ROWS, np.float32)}

    def input_fn():
        if where == "call":
            raise KeyError(where)
        return Broken()

    with pytest.raises(KeyError, match=where) as caught:
        estimator(tmp_path).train(input_fn, steps=3)
    assert any("raised by input_fn" in note for note in caught.value.__notes__) or where == "iter"
    assert infeed_threads() == []


@pytest.mark.parametrize("how", ["closed", "dropped"])
def test_a_predict_generator_that_is_left_ends_its_input_in_the_inputs_thread(tmp_path, how):
    threads = []

    def input_fn():
        try:
            threads.append(threading.get_ident())
            yield from counting_input()()
        finally:
            threads.append(threading.get_ident())

    predictions = estimator(tmp_path).predict(input_fn)
    next(predictions)
    if how == "closed":
        predictions.close()
    else:
        del predictions
        gc.collect()
    assert len(threads) == 2
    assert len(set(threads)) == 1
    assert infeed_threads() == []


# What the user made.


def own_generator(log):
    try:
        for i in range(1000):
            yield {"x": np.full(ROWS, i, np.float32)}
    finally:
        log.append("closed")


@pytest.mark.parametrize("every", [1, 3, 100])
def test_a_generator_of_the_users_goes_on_where_it_stood(tmp_path, every):
    seen, log = [], []
    mine = own_generator(log)
    made = estimator(tmp_path, seen, every)
    made.train(lambda: mine, steps=3)
    made.train(lambda: mine, steps=4)
    assert seen == list(range(7))
    assert next(mine)["x"][0] == 7
    assert log == []


def test_a_hook_that_stops_training_leaves_the_rest_to_the_user(tmp_path):
    seen = []
    mine = own_generator([])
    made = estimator(tmp_path, seen, every=5)

    class Stop(SessionRunHook):
        def after_run(self, run_context, run_values):
            run_context.request_stop()

    made.train(lambda: mine, hooks=[Stop()])
    assert (seen, next(mine)["x"][0]) == ([0, 1, 2, 3, 4], 5)
    made.train(lambda: mine, hooks=[StopAtStepHook(num_steps=7)])
    assert seen == [*range(5), *range(6, 13)]


def test_batches_read_before_an_error_are_not_lost(tmp_path):
    """Whatever was read of the user's iterator is trained on by the next call."""
    seen, mine = [], own_generator([])
    fail = [True]

    def model_fn(variables, features, mode):
        if fail:
            raise RuntimeError("while tracing")
        return recording(seen)(variables, features, mode)

    made = js.TPUEstimator(
        model_fn, counting_init, model_dir=tmp_path, config=run_config(every=50, num_shards=1), train_batch_size=ROWS
    )
    with pytest.raises(RuntimeError, match="while tracing"):
        made.train(lambda: mine, steps=3)
    fail.clear()
    made.train(lambda: mine, steps=3)
    assert seen == [0, 1, 2]


def test_batches_in_flight_when_a_loop_is_cut_short_are_kept():
    mine, memory = own_generator([]), InputMemory()

    def feed():
        request = InputRequest(lambda: mine, mode="train", devices=jax.devices()[:1], batch_size=ROWS, ragged=False)
        return Infeed(request, memory=memory)

    first = feed()
    first.start(4)
    item = take(first, 10)  # of the ten that it asks for it takes those of one stack
    taken = item.count
    first.close()
    second = feed()
    second.start(1)
    values = [int(take(second, 1).data[0]["x"][0, 0, 0]) for _ in range(12)]
    second.close()
    assert values == list(range(taken, taken + 12))


@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_evaluation_and_prediction_read_no_further_than_they_use(tmp_path, verb):
    mine = own_generator([])
    made = estimator(tmp_path)
    if verb == "evaluate":

        class Stop(SessionRunHook):
            def after_run(self, run_context, run_values):
                if run_context.last_step == 2:
                    run_context.request_stop()

        result = made.evaluate(lambda: mine, hooks=[Stop()])
        assert result["mean_x"] == np.mean([0, 1, 2])
    else:
        predictions = made.predict(lambda: mine, yield_single_examples=False)
        assert [next(predictions)["x"][0] for _ in range(3)] == [0, 1, 2]
        predictions.close()
    assert next(mine)["x"][0] == 3


HOLDERS = {
    "closure": lambda it: lambda: it,
    "partial": lambda it: functools.partial(lambda it: it, it),
    "in a dict": lambda it: (lambda d: lambda: d["train"])({"train": it}),
    "cached": lambda it: functools.cache(functools.partial(lambda it: it, it)),
}


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("kind", [Own, Positioned])
def test_an_iterator_that_somebody_holds_is_not_closed(tmp_path, kind, holder):
    seen, mine = [], kind()
    made = estimator(tmp_path, seen)
    for _ in range(2):
        made.train(HOLDERS[holder](mine), steps=2)
    assert (seen, mine.closed, mine.i) == ([0, 1, 2, 3], 0, 4)


def test_an_iterator_that_nobody_else_holds_is_closed_in_time(tmp_path):
    closed = []

    class Loader(Own):
        def close(self):
            closed.append(self.i)

    made = estimator(tmp_path)
    made.train(lambda: Loader(), steps=2)
    made.evaluate(lambda: Loader(), steps=3)
    list(made.predict(lambda: Loader(count=1)))
    assert closed == [2, 3, 1]


# Errors in closing.


def test_the_error_that_ended_the_input_is_raised_and_that_of_its_close_is_a_note(tmp_path):
    with pytest.raises(ValueError, match="corrupt record 17") as caught:
        estimator(tmp_path).train(lambda: Own(fail_at=3, close_error=OSError("close failed")), steps=9)
    assert "and then, in closing the input: OSError: close failed" in caught.value.__notes__
    with pytest.raises(ValueError, match="corrupt record 17") as caught:
        estimator(tmp_path).evaluate(lambda: Own(fail_at=0, close_error=OSError("close failed")))
    assert "and then, in closing the input: OSError: close failed" in caught.value.__notes__


@pytest.mark.parametrize("steps", [2, None])
def test_an_error_in_the_close_alone_is_told_and_the_work_is_kept(tmp_path, caplog, steps):
    made = estimator(tmp_path)
    result = made.evaluate(lambda: Own(count=3, close_error=OSError("close failed")), steps=steps)
    assert result["mean_x"] == np.mean(range(steps or 3))
    (told,) = [w for w in warnings(caplog) if "closing the input failed" in w]
    assert "OSError: close failed" in told


def test_an_error_in_the_cleanup_of_a_generator_is_told(tmp_path, caplog):
    def input_fn():
        try:
            yield from counting_input()()
        finally:
            raise OSError("cleanup failed")

    made = estimator(tmp_path).train(input_fn, steps=2)
    assert made.get_variable_value("global_step") == 2
    assert any("closing the input failed: OSError: cleanup failed" in w for w in warnings(caplog))


# Silence.


def test_an_input_that_ends_before_the_steps_is_a_warning_with_what_to_do(tmp_path, caplog):
    made = estimator(tmp_path)
    made.train(counting_input(3), max_steps=10)
    (told,) = [w for w in warnings(caplog) if "has ended" in w]
    assert "gave 3 batches of the 10 that were asked for, and training ends at global step 3" in told
    assert "num_epochs=None" in told
    caplog.clear()
    made.train(counting_input(3))
    made.train(counting_input(3), steps=3)
    made.evaluate(counting_input(2))
    assert not any("has ended" in w for w in warnings(caplog))
    made.evaluate(counting_input(2), steps=5)
    assert any("before the steps of evaluate" in w and "2 batches of the 5" in w for w in warnings(caplog))


def test_fewer_rows_than_a_batch_name_the_set_and_the_batch(tmp_path):
    x = {"x": np.zeros(3, np.float32)}
    with pytest.raises(ValueError, match="3 examples, given 1 times, are fewer than the 4 rows of one batch"):
        estimator(tmp_path).train(js.inputs.numpy_input_fn(x), steps=1)
    estimator(tmp_path).train(js.inputs.numpy_input_fn(x, num_epochs=2), steps=1)
    assert len(list(estimator(tmp_path).predict(js.inputs.numpy_input_fn(x)))) == 3


def test_an_evaluation_that_is_known_to_be_endless_is_refused(tmp_path):
    input_fn = js.inputs.numpy_input_fn({"x": np.arange(8, dtype=np.float32)}, num_epochs=None)
    made = estimator(tmp_path)
    with pytest.raises(ValueError, match=r"evaluate would never end.*Pass steps=.*num_epochs=1"):
        made.evaluate(input_fn)
    assert made.evaluate(input_fn, steps=2)["mean_x"] == 3.5


def test_an_evaluation_of_a_minute_says_once_that_it_goes_on(caplog):
    now = [100.0]

    def evaluated(limit, mode="eval"):
        request = InputRequest(
            counting_input(6), mode=mode, devices=jax.devices()[:1], batch_size=ROWS, ragged=True, limit=limit
        )
        feed = Infeed(request, clock=lambda: now[0])
        feed.start(1)
        while take(feed, 1) is not None:
            now[0] += 25
        feed.close()

    evaluated(None)
    assert ["taken 3 batches in 60 s" in w for w in warnings(caplog)] == [True]
    caplog.clear()
    evaluated(6)
    evaluated(None, mode="infer")
    assert warnings(caplog) == []


@pytest.mark.parametrize(("steps", "whole"), [(1, False), (None, True)])
def test_64_bit_arrays_are_converted_as_a_whole_only_if_all_of_them_are_read(tmp_path, monkeypatch, steps, whole):
    sizes, narrowed = [], elements.narrowed

    def noting(array, *args):
        sizes.append(len(array))
        return narrowed(array, *args)

    made = estimator(tmp_path).train(counting_input(4), steps=1)
    monkeypatch.setattr(batch_module, "narrowed", noting)
    monkeypatch.setattr(input_source, "narrowed", noting)
    x = np.arange(100 * ROWS, dtype=np.float64)
    made.evaluate(js.inputs.numpy_input_fn({"x": x}), steps=steps)
    assert (len(x) in sizes) == whole
    assert ROWS in sizes  # the first batch is converted by itself
