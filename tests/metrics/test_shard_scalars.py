"""The mean of a scalar of each shard, in eval_metrics and in host_call of an evaluation, is the mean over the rows."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxspec as js
from jaxspec._src.metrics.shard_scalars import ShardScalars

X = np.random.default_rng(0).normal(size=45).astype(np.float32) ** 2


def evaluate(model_dir, shards, metric_fn, tensors, host_call=None, hooks=(), sizes=(16, 13, 7, 1, 8)):
    def model_fn(variables, features, mode):
        given = tensors(features)
        host = None if host_call is None else (host_call, given)
        return js.TPUEstimatorSpec(mode, loss=features.mean(), eval_metrics=(metric_fn, given), host_call=host)

    estimator = js.TPUEstimator(
        model_fn,
        lambda: {"params": {"w": jnp.zeros(())}},
        model_dir=model_dir,
        config=js.RunConfig(js.TPUConfig(num_shards=shards)),
        eval_batch_size=16,
    )
    at = np.cumsum([0, *sizes])
    assert at[-1] == len(X)
    return estimator.evaluate(lambda: [X[a : a + n] for a, n in zip(at, sizes, strict=False)], hooks=hooks)


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_the_mean_of_a_scalar_is_the_mean_over_examples(tmp_path, shards):
    collected = []

    def metric_fn(mean):
        collected.append(mean)
        return {
            "metric": js.metrics.mean(mean),
            "method": mean.mean(),
            "function": np.mean(mean),
            "average": np.average(mean),
            "shifted": js.metrics.mean(2 * mean - 1),
            "below": js.metrics.percentage_below(mean - mean, 1.0),
            "scaled": js.metrics.mean(mean, weights=3.0),
        }

    result = evaluate(tmp_path, shards, metric_fn, lambda x: [x.mean()])
    for name in ("metric", "method", "function", "average", "scaled"):
        np.testing.assert_allclose(result[name], X.mean(), rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(result["shifted"], 2 * X.mean() - 1, rtol=1e-5)
    assert result["below"] == 1
    np.testing.assert_allclose(np.concatenate(collected).mean(), X.mean(), rtol=1e-5)


@pytest.mark.parametrize("shards", [1, 4])
def test_sums_and_counts_are_what_they_are(tmp_path, shards):
    def metric_fn(total, count, rows):
        assert total.sum() == np.asarray(total).sum()
        return {
            "weighted": js.metrics.mean(total / count, weights=count),
            "ratio": js.metrics.mean(total.sum() / count.sum(), weights=count.sum()),
            "rows": js.metrics.mean(rows),
        }

    def tensors(x):
        positive = x > 0.5
        return [
            jnp.where(positive, x, 0).sum(),
            jnp.maximum(positive.sum(), 1e-6),
            jax.lax.psum(jnp.float32(len(x)), js.SHARD_AXIS),
        ]

    result = evaluate(tmp_path, shards, metric_fn, tensors)
    expected = X[X > 0.5].mean()
    np.testing.assert_allclose([result["weighted"], result["ratio"]], expected, rtol=1e-5)
    # Groups of a batch: the full shards, and the rest on its own.
    groups = {1: [16, 13, 7, 1, 8], 4: [16, 12, 1, 4, 3, 1, 8]}[shards]
    np.testing.assert_allclose(result["rows"], np.average(groups, weights=groups), rtol=1e-6)


def test_host_call_and_hooks_see_the_mean_over_rows(tmp_path):
    means, fetched = [], []

    class Fetch(js.hooks.SessionRunHook):
        def before_run(self, run_context):
            return js.hooks.SessionRunArgs("mean")

        def after_run(self, run_context, run_values):
            fetched.append(run_values.results)

    evaluate(
        tmp_path,
        4,
        lambda mean: {},
        lambda x: {"mean": x.mean()},
        host_call=lambda mean: means.append(mean.mean()),
        hooks=[Fetch()],
    )
    at = np.cumsum([0, 16, 13, 7, 1, 8])
    expected = [X[a:b].mean() for a, b in itertools.pairwise(at)]
    np.testing.assert_allclose(means, expected, rtol=1e-5)
    np.testing.assert_allclose(fetched, expected, rtol=1e-5)


def scalars():
    return ShardScalars(np.float32([1, 2, 6]), np.array([4, 4, 2]))


def test_arithmetic_keeps_the_rows():
    x = scalars()
    for y, expected in (
        (x + 1, 3.4),
        (1 - x, -1.4),
        (np.sqrt(x) ** 2, 2.4),
        (x * x, 9.2),
        (np.where(x > 1, x, 0), 2.0),
        (x.astype(np.float64), 2.4),
        (x.copy(), 2.4),
        (x[x > 1], 20 / 6),
        (x[1:], 20 / 6),
        (np.concatenate([x, x]), 2.4),
        (x > 1, 0.6),
    ):
        np.testing.assert_allclose(np.mean(y), expected, rtol=1e-6)
        np.testing.assert_allclose(js.metrics.mean(y).compute(), expected, rtol=1e-6)
    x -= 1
    np.testing.assert_allclose(x.mean(), 1.4, rtol=1e-6)
    assert x.dtype == x.mean().dtype == np.float32


def test_the_entries_are_a_plain_array_in_everything_else():
    x = scalars()
    assert (x.sum(), np.sum(x), x.max(), x.min(), len(x), x[0], x.tolist()) == (9, 9, 6, 1, 3, 1, [1, 2, 6])
    assert type(np.asarray(x)) is np.ndarray
    assert np.asarray(x).mean() == 3
    assert np.array_equal(x, [1, 2, 6])


@pytest.mark.parametrize(
    "use",
    [
        lambda x: x.std(),
        np.var,
        np.median,
        lambda x: np.percentile(x, 50),
        lambda x: js.metrics.mean_tensor(x),
        lambda x: js.metrics.mean_squared_error(x, x),
        lambda x: js.metrics.collect(np.mean, x=x),
        lambda x: x[None].mean(),
    ],
)
def test_what_cannot_be_right_is_refused(use):
    with pytest.raises(
        TypeError, match=r"a scalar of each shard.*jnp.broadcast_to\(x, features.shape\[:1\]\) in model_fn; or a sum"
    ):
        use(scalars())
