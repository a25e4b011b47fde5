"""`rng` differs by mode, step, batch and shard, and is the same again in the same run."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxspec as js


def drawing(drawn, variables, features, mode, rng):
    """A number for each row, from the shard's key alone."""
    noise = jax.random.uniform(rng, (features.shape[0],))
    if mode == js.ModeKeys.PREDICT:
        return js.TPUEstimatorSpec(mode, predictions=noise)
    collected = (lambda noise: drawn.setdefault(mode, []).append(noise), [noise])
    return js.TPUEstimatorSpec(
        mode,
        loss=noise.mean() + 0 * variables["params"]["w"],
        train_op=js.minimize(optax.sgd(0.0)),
        eval_metrics=collected,
        host_call=collected if mode == js.ModeKeys.TRAIN else None,
    )


def make(drawn, model_dir, shards=4, size=8, **tpu):
    return js.TPUEstimator(
        functools.partial(drawing, drawn),
        lambda: {"params": {"w": jnp.float32(0)}},
        model_dir=model_dir,
        config=js.RunConfig(
            js.TPUConfig(num_shards=shards, **tpu), save_checkpoints_steps=1000, save_checkpoints_secs=None
        ),
        train_batch_size=size,
        eval_batch_size=size,
        predict_batch_size=size,
    )


def pieces(*sizes):
    return lambda: [np.zeros(size, np.float32) for size in sizes]


RAGGED = (8, 8, 7, 8, 3, 1, 1, 8, 5)


@pytest.mark.parametrize("shards", [1, 4])
def test_no_number_is_drawn_twice(tmp_path, shards):
    """Slow: batches of five sizes, each with programs of its own to evaluate and to predict."""
    drawn = {}
    estimator = make(drawn, tmp_path, shards)
    evaluations, predictions = [], []
    for _ in range(2):
        estimator.train(pieces(8, 8, 8))
        estimator.evaluate(pieces(*RAGGED))
        evaluations.append(np.concatenate(drawn.pop("eval")))
        predictions.append(np.array(list(estimator.predict(pieces(*RAGGED)))))
    everything = np.concatenate([*drawn["train"], *evaluations, *predictions])
    assert everything.size == 6 * 8 + 4 * sum(RAGGED)
    assert np.unique(everything).size == everything.size
    # The same state again: the same numbers.
    estimator.evaluate(pieces(*RAGGED))
    np.testing.assert_array_equal(np.concatenate(drawn.pop("eval")), evaluations[1])


@pytest.mark.slow(reason="a program for each of several capacities, in three modes")
def test_the_numbers_do_not_depend_on_the_length_of_loops_or_the_size_of_stacks(tmp_path, monkeypatch):
    runs = []
    for length, most in ((100, 100), (1, 1), (2, 3)):
        monkeypatch.setattr("jaxspec._src.run.program_cache._MOST_BATCHES_A_STACK", most)
        drawn = {}
        estimator = make(drawn, tmp_path / str(length), iterations_per_loop=length)
        estimator.train(pieces(*[8] * 5))
        estimator.evaluate(pieces(*RAGGED))
        predicted = np.array(list(estimator.predict(pieces(*RAGGED))))
        runs.append(np.concatenate([*drawn["train"], *drawn["eval"], predicted]))
    for run in runs[1:]:
        np.testing.assert_array_equal(run, runs[0])


def test_the_pure_steps_take_the_number_of_the_batch(tmp_path):
    drawn = {}
    x = np.zeros(8, np.float32)
    model_fn = functools.partial(drawing, drawn)
    state = js.create_train_state(model_fn, lambda: {"params": {"w": jnp.float32(0)}}, jax.random.key(0), x)
    predict, evaluate = jax.jit(js.make_predict_step(model_fn)), jax.jit(js.make_eval_step(model_fn))
    draws = [
        predict(state, x, batch=0).predictions,
        predict(state, x, batch=1).predictions,
        predict(state, x).predictions,
    ]
    draws += [evaluate(state, x, batch=i).eval_metrics[1][0] for i in range(3)]
    for (i, a), (j, b) in itertools.combinations(enumerate(draws), 2):
        assert ((i, j) == (0, 2)) == np.array_equal(a, b)
    mapped = js.replicate(js.make_eval_step(model_fn))
    spec = js.gather(mapped(state, js.shard(x, 4), None, np.full(4, 2)))
    assert np.unique(spec.eval_metrics[1][0]).size == 8
    # The first shard draws what one device draws.
    np.testing.assert_array_equal(spec.eval_metrics[1][0][:2], evaluate(state, x[:2], batch=2).eval_metrics[1][0])
