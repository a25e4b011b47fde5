"""Small models and data that the tests share."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxspec as js


def data(rows=64, features=4, classes=3, seed=0):
    """(x float32 [rows, features], y int32 [rows])."""
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(rows, features)).astype(np.float32),
        rng.integers(0, classes, rows).astype(np.int32),
    )


def batches(*arrays, size):
    """A list of batches of `size` rows; the last may be short."""
    return [tuple(a[i : i + size] for a in arrays) for i in range(0, len(arrays[0]), size)]


class Net(nn.Module):
    """Batch norm (of the shard's own batch) and dropout."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(8)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = nn.Dropout(0.3, deterministic=not train)(nn.relu(x))
        return nn.Dense(3)(x)


def net_model_fn(variables, features, labels, mode, params, rng):
    """Adam, batch norm, dropout."""
    updates = None
    if mode == js.ModeKeys.TRAIN:
        logits, updates = Net().apply(variables, features, train=True, rngs={"dropout": rng}, mutable=["batch_stats"])
    else:
        logits = Net().apply(variables, features)
    if mode == js.ModeKeys.PREDICT:
        return js.TPUEstimatorSpec(mode, predictions={"logits": logits, "row": features[:, 0]})
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return js.TPUEstimatorSpec(
        mode,
        loss=loss,
        train_op=js.minimize(optax.adam(1e-2), updates=updates),
        eval_metrics=(accuracy_fn, [labels, logits]),
    )


def accuracy_fn(labels, logits):
    return {"accuracy": js.metrics.accuracy(labels, np.argmax(logits, -1))}


def linear_init(rng):
    """A plain dict of arrays."""
    return {"params": {"w": 0.1 * jax.random.normal(rng, (4, 3)), "b": jnp.zeros(3)}}


def linear_logits(variables, features):
    return features @ variables["params"]["w"] + variables["params"]["b"]


def linear_model_fn(variables, features, labels, mode):
    """A deterministic model whose rows do not interact."""
    logits = linear_logits(variables, features)
    if mode == js.ModeKeys.PREDICT:
        return js.TPUEstimatorSpec(mode, predictions={"logits": logits})
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return js.TPUEstimatorSpec(
        mode,
        loss=loss,
        train_op=js.minimize(optax.sgd(0.5)),
        eval_metrics=(accuracy_fn, [labels, logits]),
    )


def counting_init():
    """One variable, `w`, which counts the steps."""
    return {"params": {"w": jnp.zeros(())}}


def counting_model_fn(variables, features, mode):
    """The loss is the mean of the batch; each step adds 1 to `w`."""
    w, x = variables["params"]["w"], features["x"]
    if mode == js.ModeKeys.PREDICT:
        return js.TPUEstimatorSpec(mode, predictions={"x": x, "w": jnp.zeros_like(x) + w})
    return js.TPUEstimatorSpec(
        mode,
        loss=x.mean(),
        train_op=js.minimize(optax.sgd(1.0), lambda v: -v["params"]["w"]),
        eval_metrics=(lambda x: {"mean_x": js.metrics.mean(x)}, [x]),
    )


def counting_input(count=None, rows=4):
    """Batch i is filled with the number i."""

    def input_fn():
        i = 0
        while count is None or i < count:
            yield {"x": np.full((rows,), i, np.float32)}
            i += 1

    return input_fn


def run_config(save=None, every=100, **kwargs):
    """Checkpoints every `save` steps, loops of `every` steps; None: no checkpoints."""
    tpu = {key: kwargs.pop(key) for key in ("num_shards", "experimental_host_call_every_n_steps") if key in kwargs}
    return js.RunConfig(
        js.TPUConfig(iterations_per_loop=every, **tpu),
        save_checkpoints_steps=save,
        save_checkpoints_secs=None,
        **kwargs,
    )


def assert_trees_equal(a, b):
    """Bit for bit, leaf by leaf."""
    a_leaves, b_leaves = jax.tree.leaves(plain(a)), jax.tree.leaves(plain(b))
    assert len(a_leaves) == len(b_leaves)
    for x, y in zip(a_leaves, b_leaves, strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def plain(tree):
    """Typed keys as their data, so that NumPy can look at them."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x, tree)


def assert_same_on_all_devices(tree, devices):
    """Every leaf has one copy on each device, and the copies are bit for bit equal."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(plain(tree)):
        copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(copies) == devices, jax.tree_util.keystr(path)
        for copy in copies[1:]:
            np.testing.assert_array_equal(copy, copies[0], err_msg=jax.tree_util.keystr(path))
