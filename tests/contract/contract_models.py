"""The counting model behind the recordings: `w` is 0 at the start and rises by one with every step."""

import jax.numpy as jnp
import numpy as np
import optax

import jaxspec as js


def init_fn():
    """The variables."""
    return {"params": {"w": jnp.zeros(())}}


def model_fn(variables, features, mode, params):
    """The loss is the mean of the batch; evaluation gives `mean_x` and `w`, prediction `x` and `w` by row."""
    x, w = features["x"], variables["params"]["w"]
    row_w = jnp.broadcast_to(w, x.shape)
    return js.TPUEstimatorSpec(
        mode,
        predictions={"x": x, "w": row_w},
        loss=x.mean(),
        train_op=js.apply_gradients(optax.sgd(1.0), {"w": -jnp.ones(())}),
        eval_metrics=(count_metrics, [x, row_w]),
    )


def count_metrics(x, w):
    """The metrics of the counting model."""
    return {"mean_x": js.metrics.mean(x), "w": js.metrics.mean(w)}


def batches(rows, count):
    """Batch i is filled with the number i."""
    return [({"x": np.full(rows, i, np.float32)}, None) for i in range(count)]


def global_step(estimator):
    """The step of the estimator's latest checkpoint."""
    return js.load_global_step(estimator.model_dir)
