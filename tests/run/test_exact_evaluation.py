"""Evaluation and prediction see the rows there are, on any number of shards; the loss is that of the whole set."""

import functools
import logging
import operator
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_models import batches

import jaxspec as js


def make(model_fn, shards, size, model_dir):
    return js.TPUEstimator(
        model_fn,
        lambda: {"params": {"w": jnp.float32(2)}},
        model_dir=model_dir,
        config=js.RunConfig(js.TPUConfig(num_shards=shards), progress_bar=False),
        train_batch_size=size,
        eval_batch_size=size,
        predict_batch_size=size,
    )


def giving(pieces):
    """An input_fn."""
    return lambda: pieces


# rows that see the rows of their group


def groups_of(rows, shards, rows_per_shard):
    """(shards, rows a shard) of each group of a batch, as the documentation says."""
    full = rows // rows_per_shard if shards > 1 else 0
    rest = rows - full * rows_per_shard
    return [(full, rows_per_shard)] * (full > 0) + [(1, rest)] * (rest > 0)


def seen_by_each_row(x, shards, rows_per_shard):
    """What `interacting` computes, by NumPy: [rows, 5]."""
    out = []
    for batch in batches(x, size=shards * rows_per_shard):
        rest = batch[0]
        for count, size in groups_of(len(rest), shards, rows_per_shard):
            group, rest = rest[: count * size], rest[count * size :]
            parts = group.reshape(count, size)
            for index, part in enumerate(parts):
                out += [
                    (count * size, parts.mean(1).mean(), (group**2).sum(), index, group.mean() * row) for row in part
                ]
    return np.array(out)


def interacting(seen, traced, variables, features, mode):
    x, rows = features, features.shape[0]
    traced.add((jax.lax.axis_size(js.SHARD_AXIS), rows))
    columns = (
        jax.lax.psum(jnp.float32(rows), js.SHARD_AXIS),
        jax.lax.pmean(x.mean(), js.SHARD_AXIS),
        (jax.lax.all_gather(x, js.SHARD_AXIS, tiled=True) ** 2).sum(),
        jax.lax.axis_index(js.SHARD_AXIS).astype(jnp.float32),
        jax.lax.pmean(js.global_mean(x), js.SHARD_AXIS) * x,
    )
    table = jnp.stack([jnp.broadcast_to(column, (rows,)) for column in columns], 1)
    if mode == js.ModeKeys.PREDICT:
        return js.TPUEstimatorSpec(mode, predictions=table)
    return js.TPUEstimatorSpec(mode, loss=x.mean(), eval_metrics=(lambda table: seen.append(table), [table]))


def check_groups(model_dir, shards, rows_per_shard=3):
    b = rows_per_shard
    for tail in (1, b - 1, b, b + 1, 2 * b + 1):
        seen, traced = [], set()
        x = np.random.default_rng(tail).normal(size=shards * b + tail).astype(np.float32)
        estimator = make(functools.partial(interacting, seen, traced), shards, shards * b, f"{model_dir}/{tail}")
        pieces = [piece for (piece,) in batches(x, size=shards * b)]
        loss = estimator.evaluate(giving(pieces))["loss"]
        expected = seen_by_each_row(x, shards, b)
        np.testing.assert_allclose(loss, x.mean(), rtol=1e-5)
        np.testing.assert_allclose(np.concatenate(seen), expected, rtol=2e-5, atol=1e-6)
        predicted = np.stack(list(estimator.predict(giving(pieces))))
        np.testing.assert_allclose(predicted, expected, rtol=2e-5, atol=1e-6)
        # No program but those of the groups that occur; the shapes of the outputs come from one shard.
        occurring = {group for piece in pieces for group in groups_of(len(piece), shards, b)}
        assert traced <= {(1, b), (shards, b)} | occurring


@pytest.mark.parametrize("shards", [1, 4])
def test_collectives_see_the_rows_there_are_and_nothing_else(tmp_path, shards):
    check_groups(tmp_path, shards)


@pytest.mark.slow(reason="a process of its own compiles every program for eight devices")
def test_on_eight_shards_too(tmp_path):
    program = (
        "import os; os.environ.update(JAX_PLATFORMS='cpu', XLA_FLAGS='--xla_force_host_platform_device_count=8');"
        "import sys; from test_exact_evaluation import check_groups, check_weighted;"
        "check_groups(sys.argv[1], 8); check_weighted(sys.argv[1], [(8, 8), (8, 16)]); print('done')"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=pathlib.Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.stdout == "done\n", ran.stderr[-2000:]


def test_a_short_batch_again_compiles_nothing(tmp_path):
    traced = set()
    estimator = make(functools.partial(interacting, [], traced), 4, 12, tmp_path)
    x = np.arange(40, dtype=np.float32)
    estimator.evaluate(lambda: [x[:12], x[12:19]])
    traced.clear()
    estimator.evaluate(lambda: [x[:12], x[20:27], x[27:34]])
    assert traced == set()
    estimator.evaluate(lambda: [x[:12], x[20:30]])
    assert traced == {(3, 3)}  # one row alone had its program before


def test_a_metric_of_rows_that_interact_is_merged_over_groups(tmp_path):
    """In-batch retrieval, each row against those of its group."""

    def model_fn(variables, features, mode):
        everyone = jax.lax.all_gather(features["b"], js.SHARD_AXIS, tiled=True)
        rows = features["a"].shape[0]
        mine = jax.lax.axis_index(js.SHARD_AXIS) * rows + jnp.arange(rows)
        right = jnp.argmax(features["a"] @ everyone.T, 1) == mine
        return js.TPUEstimatorSpec(
            mode, loss=1.0 - right.mean(), eval_metrics=(lambda right: {"top1": js.metrics.mean(right)}, [right])
        )

    rng = np.random.default_rng(0)
    a = rng.normal(size=(27, 4)).astype(np.float32)
    b = (a + rng.normal(size=a.shape)).astype(np.float32)
    right = []
    for start, stop in ((0, 16), (16, 24), (24, 27)):  # a full batch; two full shards; the rest
        right += list((a[start:stop] @ b[start:stop].T).argmax(1) == np.arange(stop - start))
    result = make(model_fn, 4, 16, tmp_path).evaluate(lambda: [{"a": a[:16], "b": b[:16]}, {"a": a[16:], "b": b[16:]}])
    np.testing.assert_allclose([result["top1"], 1 - result["loss"]], np.mean(right), rtol=1e-6)


# the weighted loss


ROWS, TOKENS = 37, 5


def weighted_data():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(ROWS, TOKENS)).astype(np.float32)
    mask = (rng.uniform(size=(ROWS, TOKENS)) < 0.5).astype(np.float32) * rng.integers(1, 5, (ROWS, 1)).astype(
        np.float32
    )
    mask[8:24] = 0  # whole batches, and whole shards of others, are padding
    mask[-1] = 0
    weights = rng.uniform(0, 2, ROWS).astype(np.float32)
    return {"x": x, "mask": mask, "weights": weights}


def expected_weighted_loss():
    data = {name: value.astype(np.float64) for name, value in weighted_data().items()}
    of_tokens = ((2 * data["x"] - 1) ** 2 * data["mask"]).sum() / data["mask"].sum()
    of_rows = np.average(np.abs(data["x"]).sum(1), weights=data["weights"])
    return of_tokens + 0.5 * of_rows + 0.1 * 2.0**2 + data["x"][:, 0].mean()


def weighted_loss(w, features):
    of_tokens = js.global_mean((w * features["x"] - 1) ** 2, features["mask"])
    of_rows = js.global_mean(jnp.abs(features["x"]).sum(1), features["weights"])
    return of_tokens + 0.5 * of_rows + 0.1 * w**2 + features["x"][:, 0].mean()


jitted_weighted_loss = jax.jit(weighted_loss)


def in_scan(w, features):
    return jax.lax.scan(lambda carry, _: (carry + weighted_loss(w, features), None), 0.0, None, length=1)[0]


FORMS = {
    "plain": weighted_loss,
    "jit of a module": jitted_weighted_loss,
    "remat": jax.checkpoint(weighted_loss),
    "scan": in_scan,
    "value_and_grad": lambda w, features: jax.value_and_grad(weighted_loss)(w, features)[0],
    "mean over shards": lambda w, features: jax.lax.pmean(weighted_loss(w, features), js.SHARD_AXIS),
}


def weighted_model_fn(variables, features, mode, loss_fn=weighted_loss):
    return js.TPUEstimatorSpec(
        mode,
        loss=loss_fn(variables["params"]["w"], features),
        train_op=js.minimize(optax.sgd(0.1)),
    )


def check_weighted(model_dir, cases, loss_fn=weighted_loss):
    data = weighted_data()
    for shards, size in cases:
        estimator = make(
            functools.partial(weighted_model_fn, loss_fn=loss_fn), shards, size, f"{model_dir}/{shards}-{size}"
        )
        pieces = [jax.tree.map(operator.itemgetter(slice(i, i + size)), data) for i in range(0, ROWS, size)]
        result = estimator.evaluate(giving(pieces))
        np.testing.assert_allclose(result["loss"], expected_weighted_loss(), rtol=2e-6, err_msg=str((shards, size)))


def test_the_weighted_loss_is_that_of_the_whole_set_for_every_batch_size_and_number_of_shards(tmp_path):
    """Slow: seven batch sizes, each with a program for full batches and one or two for the last."""
    check_weighted(tmp_path, [(1, 1), (1, 8), (1, 37), (4, 4), (4, 8), (4, 20), (4, 40)])


@pytest.mark.parametrize("form", FORMS)
def test_wherever_in_model_fn_the_means_are_taken(tmp_path, form):
    check_weighted(tmp_path, [(4, 8), (1, 10)], FORMS[form])


@pytest.mark.slow(reason="without jit every operation is dispatched, and compiled, by itself")
def test_also_under_disable_jit_where_model_fn_reads_the_loss(tmp_path):
    read = []

    def reads_the_loss(w, features):
        loss = weighted_loss(w, features)
        read.append(float(jax.lax.stop_gradient(loss)))
        return loss

    with jax.disable_jit():
        check_weighted(tmp_path, [(1, 20)], reads_the_loss)
    assert min(read) > 0


def test_under_disable_jit_a_loss_that_is_read_without_stop_gradient_is_a_warning(tmp_path, caplog):
    def reads_the_loss(w, features):
        loss = weighted_loss(w, features)
        assert float(loss) > 0
        return loss

    estimator = make(functools.partial(weighted_model_fn, loss_fn=reads_the_loss), 1, 20, tmp_path)
    with jax.disable_jit():
        assert estimator.evaluate(lambda: [jax.tree.map(lambda x: x[:20], weighted_data())])["loss"] > 0
    assert "write float(jax.lax.stop_gradient(loss)) for float(loss)" in caplog.text


def test_a_jitted_loss_serves_training_and_evaluation_in_turn(tmp_path):
    data = weighted_data()
    estimator = make(functools.partial(weighted_model_fn, loss_fn=jitted_weighted_loss), 4, 8, tmp_path)
    pieces = [jax.tree.map(lambda x, i=i: x[i : i + 8], data) for i in range(0, 37, 8)]
    np.testing.assert_allclose(estimator.evaluate(lambda: pieces)["loss"], expected_weighted_loss(), rtol=2e-6)
    estimator.train(lambda: pieces[:4], steps=1)
    assert np.isfinite(estimator.evaluate(lambda: pieces)["loss"])
    assert estimator.evaluate(lambda: pieces)["global_step"] == 1


def test_many_means_in_one_loss(tmp_path):
    x = np.random.default_rng(0).uniform(1, 2, (11, 9)).astype(np.float32)
    weights = np.random.default_rng(1).integers(0, 3, (11, 9)).astype(np.float32)

    def model_fn(features, mode):
        terms = [js.global_mean(features["x"][:, i], features["weights"][:, i]) for i in range(9)]
        return js.TPUEstimatorSpec(mode, loss=jnp.stack(terms).sum())

    pieces = [{"x": x[i : i + 4], "weights": weights[i : i + 4]} for i in range(0, 11, 4)]
    loss = make(model_fn, 2, 4, tmp_path).evaluate(lambda: pieces)["loss"]
    np.testing.assert_allclose(loss, sum(np.average(x[:, i], weights=weights[:, i]) for i in range(9)), rtol=1e-6)


def means_of_columns(x, weights):
    return sum(np.average(x[:, i], weights=weights[:, i]) for i in range(x.shape[1]))


def evaluated(loss_fn, x, weights, size, model_dir):
    """The loss of an evaluation on two shards."""
    pieces = [{"x": x[i : i + size], "weights": weights[i : i + size]} for i in range(0, len(x), size)]

    def model_fn(features, mode):
        return js.TPUEstimatorSpec(mode, loss=loss_fn(features["x"], features["weights"]))

    return make(model_fn, 2, size, model_dir).evaluate(lambda: pieces)["loss"]


jitted_mean = jax.jit(js.global_mean)
UNEQUAL = np.random.default_rng(1).integers(0, 9, (11, 3)).astype(np.float32)


def test_a_jitted_mean_may_be_called_several_times(tmp_path, caplog):
    def loss_fn(x, weights):
        return jitted_mean(x[:, 0], weights[:, 0]) + sum(jitted_mean(x[:, i], weights[:, i]) for i in (1, 2))

    x = np.random.default_rng(0).uniform(1, 2, UNEQUAL.shape).astype(np.float32)
    np.testing.assert_allclose(evaluated(loss_fn, x, UNEQUAL, 4, tmp_path), means_of_columns(x, UNEQUAL), rtol=1e-6)
    assert "weighted mean of the whole set" not in caplog.text


def in_a_scan(x, weights):
    return jax.lax.scan(lambda sum, xw: (sum + js.global_mean(*xw), None), jnp.float32(0), (x.T, weights.T))[0]


def under_vmap(x, weights):
    return jax.vmap(js.global_mean, in_axes=1)(x, weights).sum()


def signs_that_cancel(x, weights):
    return jnp.sum(jnp.float32([1, -1]) * jax.vmap(js.global_mean, in_axes=1)(x[:, :2], weights[:, :2]))


@pytest.mark.parametrize("loss_fn", [in_a_scan, under_vmap])
def test_a_mean_that_runs_several_times_is_exact_for_equal_weights_or_a_warning(tmp_path, caplog, loss_fn):
    x = np.random.default_rng(0).uniform(1, 2, UNEQUAL.shape).astype(np.float32)
    equal = np.repeat(UNEQUAL[:, :1], 3, 1)
    loss = evaluated(loss_fn, x, equal, 4, tmp_path)
    np.testing.assert_allclose(loss, means_of_columns(x, equal), rtol=1e-6)
    assert "weighted mean of the whole set" not in caplog.text
    evaluated(loss_fn, x, UNEQUAL, 4, tmp_path)
    assert "is not exactly the weighted mean of the whole set: a global_mean of it runs several times" in caplog.text


def test_means_of_one_call_that_cancel_are_a_warning(tmp_path, caplog):
    evaluated(signs_that_cancel, np.float32([[1, 2], [3, 5], [4, 9]]), np.ones((3, 2), np.float32), 2, tmp_path)
    assert "is not exactly the weighted mean of the whole set" in caplog.text


def test_hooks_see_the_loss_of_their_batch(tmp_path):
    seen = []

    class Losses(js.hooks.SessionRunHook):
        def before_run(self, run_context):
            return js.hooks.SessionRunArgs("loss")

        def after_run(self, run_context, run_values):
            seen.append(run_values.results)

    v, w = np.arange(13, dtype=np.float32), np.arange(13, dtype=np.float32) % 4

    def model_fn(features, labels, mode):
        return js.TPUEstimatorSpec(mode, loss=js.global_mean(features, labels))

    make(model_fn, 4, 8, tmp_path).evaluate(lambda: [(v[:8], w[:8]), (v[8:], w[8:])], hooks=[Losses()])
    expected = [np.average(v[:8], weights=w[:8]), np.average(v[8:], weights=w[8:])]
    np.testing.assert_allclose(seen, expected, rtol=1e-6)
    assert all(np.shape(loss) == () for loss in seen)


def test_weights_of_zero_give_zero_and_no_gradient():
    for weights in (np.zeros(4, np.float32), np.zeros(4, bool)):
        value, gradient = jax.value_and_grad(lambda v, weights=weights: js.global_mean(v, weights))(jnp.arange(4.0))
        assert value == 0
        np.testing.assert_array_equal(gradient, np.zeros(4))


def test_weights_of_another_shape_are_refused_with_what_to_write():
    with pytest.raises(ValueError, match="broadcast") as caught:
        js.global_mean(jnp.ones((4, 3)), jnp.ones(4))
    assert caught.value.__notes__ == [
        "global_mean: weights have shape (4,), values (4, 3). For one weight a row write weights[:, None]."
    ]


def test_half_precision_is_added_up_in_float32():
    values = jnp.ones(4096, jnp.bfloat16)
    assert js.global_mean(values).dtype == jnp.bfloat16
    assert js.global_mean(values) == 1
    weights = np.random.default_rng(0).uniform(0, 1, 4096)
    mixed = js.global_mean(jnp.arange(4096, dtype=jnp.float16), weights.astype(np.float32))
    np.testing.assert_allclose(mixed, np.average(np.arange(4096.0), weights=weights), rtol=2e-3)


def test_an_infinite_batch_is_reported_as_it_is(tmp_path):
    def model_fn(features, mode):
        return js.TPUEstimatorSpec(mode, loss=js.global_mean(features))

    inf, nan = np.float32(np.inf), np.float32(np.nan)
    for bad in (inf, nan):
        result = make(model_fn, 1, 2, tmp_path).evaluate(giving([np.float32([1, bad]), np.float32([2])]))
        np.testing.assert_equal(result["loss"], float(bad))


def test_a_loss_that_cannot_be_taken_apart_is_weighted_by_rows_with_a_warning(tmp_path, caplog):
    def model_fn(features, labels, mode):
        loss = js.global_mean(features, labels)
        loss = jax.lax.while_loop(lambda x: x < 0, lambda x: x + 1.0, loss)
        return js.TPUEstimatorSpec(mode, loss=loss)

    v, w = np.arange(1, 7, dtype=np.float32), np.float32([1, 1, 1, 1, 9, 1])
    with caplog.at_level(logging.WARNING, "jaxspec"):
        result = make(model_fn, 1, 4, tmp_path).evaluate(lambda: [(v[:4], w[:4]), (v[4:], w[4:])])
    by_rows = (4 * np.average(v[:4], weights=w[:4]) + 2 * np.average(v[4:], weights=w[4:])) / 6
    np.testing.assert_allclose(result["loss"], by_rows, rtol=1e-6)
    assert "weighted by their rows, not by the weights. Call global_mean outside of it" in caplog.text


def test_an_error_behind_a_mean_is_the_users_own(tmp_path):
    def model_fn(features, mode):
        raise KeyError(f"mine {js.global_mean(features).shape}")

    with pytest.raises(KeyError, match=r"mine \(\)") as caught:
        make(model_fn, 1, 4, tmp_path).evaluate(lambda: [np.ones(4, np.float32)])
    assert caught.value.__context__ is None


@pytest.mark.skipif(
    jax.__version_info__[:2] == (0, 11),
    reason="XLA's CPU compiler of jax 0.11.2 crashes on an array without entries in a loop",
)
def test_leaves_without_entries_are_no_harm_in_a_short_batch(tmp_path):
    def model_fn(features, mode):
        return js.TPUEstimatorSpec(mode, predictions=features["x"] + features["none"].sum())

    batch = {"x": np.arange(7, dtype=np.float32), "none": np.zeros((7, 0), np.float32)}
    np.testing.assert_array_equal(list(make(model_fn, 4, 8, tmp_path).predict(giving([batch]))), np.arange(7))
