"""A training loop of one's own, in one process or several."""

import jax
import numpy as np
import processes
from tiny_models import data, linear_init, linear_model_fn

import jaxspec as js

ROWS, STEPS = 16, 6


def train():
    """Losses, all rows that gather gives, and the weights after a few steps."""
    if processes.is_child():
        processes.join()
    x, y = data(rows=ROWS)
    rows = ROWS // jax.process_count()
    mine = slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)
    state = js.create_train_state(linear_model_fn, linear_init, jax.random.key(0), x[:1], y[:1])
    step = js.replicate(js.make_train_step(linear_model_fn), donate_state=True)
    evaluate = js.replicate(js.make_eval_step(linear_model_fn))
    losses = []
    for _ in range(STEPS):
        state, spec = step(state, *js.shard((x[mine], y[mine]), jax.local_device_count()))
        losses.append(float(js.gather(spec).loss))
    whole = js.gather(evaluate(state, *js.shard((x[mine], y[mine]), jax.local_device_count())))
    leaves = [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(whole.eval_metrics[1])]
    weights = [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(state.variables)]
    return {"losses": losses, "leaves": leaves, "weights": weights}


def leave():
    """Leaves what `train` returns."""
    processes.finish(train())
