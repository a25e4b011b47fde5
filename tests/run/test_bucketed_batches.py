"""Batches of a few shapes, such as sequences padded to one of three lengths: one program for each, promises unchanged."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_models import assert_trees_equal, run_config

import jaxspec as js

LENGTHS, ROWS, WORDS = (4, 8, 16), 4, 11


def sequences(count, seed=0):
    """Batches of one length each: (ids [rows, length], 0 for padding; labels [rows])."""
    rng = np.random.default_rng(seed)
    out = []
    for length in rng.choice(LENGTHS, count):
        ids = rng.integers(1, WORDS, (ROWS, length)).astype(np.int32)
        ids[np.arange(length) >= rng.integers(1, length + 1, ROWS)[:, None]] = 0
        out.append(({"ids": ids}, (ids.sum(1) % 2).astype(np.int32)))
    return out


BATCHES = sequences(40)


def padded(batches):
    """The same examples, all padded to the longest length."""
    return [
        ({"ids": np.pad(x["ids"], ((0, 0), (0, LENGTHS[-1] - x["ids"].shape[1])))}, labels) for x, labels in batches
    ]


def init_fn(rng):
    return {"params": {"words": 0.1 * jax.random.normal(rng, (WORDS, 2)), "bias": jnp.zeros(2)}}


def model_fn(variables, features, labels, mode):
    params, ids = variables["params"], features["ids"]
    known = (ids > 0)[..., None]
    logits = (params["words"][ids] * known).sum(1) / known.sum(1) + params["bias"]
    if mode == js.ModeKeys.PREDICT:
        return js.TPUEstimatorSpec(mode, predictions={"class": logits.argmax(-1), "ids": ids})
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return js.TPUEstimatorSpec(
        mode,
        loss=loss,
        train_op=js.minimize(optax.adam(0.1)),
        eval_metrics=(
            lambda labels, logits: {"accuracy": js.metrics.accuracy(labels, logits.argmax(-1))},
            [labels, logits],
        ),
    )


def estimator(model_dir, *, num_shards=2, every=100, **kwargs):
    return js.TPUEstimator(
        model_fn,
        init_fn,
        model_dir=model_dir,
        config=run_config(every=every, num_shards=num_shards, **kwargs),
        train_batch_size=ROWS,
        eval_batch_size=ROWS,
        predict_batch_size=ROWS,
    )


def weights(made):
    return {name: made.get_variable_value(name) for name in made.get_variable_names()}


def test_every_loop_length_trains_the_same_bits_with_a_program_for_each_length(tmp_path, caplog):
    caplog.set_level(logging.INFO, "jaxspec")
    together = estimator(tmp_path / "a").train(lambda: BATCHES)
    found = [record.getMessage() for record in caplog.records if "has new shapes" in record.getMessage()]
    assert len(found) == len(LENGTHS) - 1
    assert "they need program 3 of 16 at most (RunConfig.max_programs)" in found[1]
    for every in (1, 7):
        one_by_one = estimator(tmp_path / str(every), every=every).train(lambda: BATCHES)
        assert_trees_equal(weights(one_by_one), weights(together))


def test_padding_to_a_few_lengths_trains_evaluates_and_predicts_as_padding_to_the_longest(tmp_path):
    short, long = estimator(tmp_path / "a"), estimator(tmp_path / "b")
    short.train(lambda: BATCHES)
    long.train(lambda: padded(BATCHES))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), weights(short), weights(long))
    ragged = [*BATCHES[:9], ({"ids": BATCHES[9][0]["ids"][:3]}, BATCHES[9][1][:3])]
    assert short.evaluate(lambda: ragged) == pytest.approx(short.evaluate(lambda: padded(ragged)), rel=1e-6)
    for one, two in zip(short.predict(lambda: ragged), short.predict(lambda: padded(ragged)), strict=True):
        assert one["class"] == two["class"]
        assert len(one["ids"]) in LENGTHS


def test_a_second_call_compiles_nothing(tmp_path):
    made = estimator(tmp_path)
    for _ in range(2):
        made.train(lambda: BATCHES)
        made.evaluate(lambda: BATCHES)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, _, **kwargs: compiled.append(name))
    try:
        made.train(lambda: BATCHES)
        made.evaluate(lambda: BATCHES)
        assert not [name for name in compiled if name.endswith("backend_compile_duration")]
    finally:
        jax.monitoring.clear_event_listeners()


def test_training_that_is_resumed_goes_on_with_whatever_length_comes_next(tmp_path):
    class Sequences:
        """An input that reports its position."""

        def __init__(self):
            self.next = 0

        def __iter__(self):
            return self

        def __next__(self):
            if self.next == len(BATCHES):
                raise StopIteration
            self.next += 1
            return BATCHES[self.next - 1]

        def get_state(self):
            return self.next

        def set_state(self, state):
            self.next = state

        def fingerprint(self):
            return {"sequences": len(BATCHES)}

    undisturbed = estimator(tmp_path / "a").train(Sequences)
    first = BATCHES[0][0]["ids"].shape
    stop = next(i for i in range(10, 30) if BATCHES[i][0]["ids"].shape != first)
    estimator(tmp_path / "b", save=100).train(Sequences, max_steps=stop)
    resumed = estimator(tmp_path / "b", save=100).train(Sequences)
    assert_trees_equal(weights(resumed), weights(undisturbed))


def test_a_stack_of_long_batches_takes_no_more_memory_than_one_of_short_ones(tmp_path):
    short, long = np.zeros((ROWS, 4), np.int32), np.zeros((ROWS, 4000), np.int32)
    sizes = []

    class Sizes(js.hooks.SessionRunHook):
        def after_run(self, run_context, run_values):
            sizes.append(run_context.last_step + 1 - run_context.first_step)

    labels = np.zeros(ROWS, np.int32)
    batches = [({"ids": short + 1}, labels)] * 8 + [({"ids": long + 1}, labels)] * 4
    made = estimator(tmp_path).train(lambda: batches, hooks=[Sizes()])
    assert sum(sizes) == made.get_variable_value("global_step") == 12


def test_more_shapes_than_programs_are_refused(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"has new shapes \(features/ids: int32\[4,\d+\]\), and each of the 2 before needs a program of its own. Pad "
        r"the batches to fewer lengths in input_fn, or raise RunConfig\(max_programs=...\).",
    ):
        estimator(tmp_path, max_programs=2).train(lambda: BATCHES)
    with pytest.raises(ValueError, match="max_programs should be > 0, got 0"):
        js.RunConfig(max_programs=0)
