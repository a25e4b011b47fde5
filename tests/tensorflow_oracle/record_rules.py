"""Records the rules of TensorFlow's optimizers and schedules into ``data/rules.json`` and ``data/rules.npz``.

The recorded training runs use few of their arguments; this tries the others. It needs TensorFlow 2.15 and
nothing of this project::

    pip install tensorflow-cpu==2.15.1 && python record_rules.py

An optimizer case is 60 steps of linear regression ``x @ w + b``, mean squared error: the losses, and
the weights (``w``, then ``b``) after the last. A schedule case is the learning rate at the steps 0 to 79.
"""

import itertools
import json
import pathlib

import numpy as np
import tensorflow as tf
from tensorflow.compat import v1

DATA = pathlib.Path(__file__).parent / "data"
RATE, DECAYING = 0.05, {"decay_steps": 15, "decay_rate": 0.6}
SCHEDULE_STEPS = 80


def main():
    """Records everything."""
    v1.disable_eager_execution()
    rng = np.random.RandomState(0)
    x = rng.randn(60, 8, 4).astype(np.float32)
    y = (x @ [[1.0], [-2.0], [0.02], [0.5]] + 0.1 * rng.randn(60, 8, 1)).astype(np.float32)
    data = {"x": x, "y": y, "w": rng.randn(4, 1).astype(np.float32), "b": np.zeros(1, np.float32)}
    optimizers, schedules = list(optimizer_cases()), list(schedule_cases())
    runs = [train(data, kind, arguments, decay) for kind, arguments, decay in optimizers]
    arrays = {
        **data,
        "losses": np.array([losses for losses, _ in runs]),
        "weights": np.array([weights for _, weights in runs]),
        "rates": learning_rates(schedules),
    }
    np.savez_compressed(DATA / "rules.npz", **arrays)
    cases = {"learning_rate": RATE, "decaying": DECAYING, "optimizers": optimizers, "schedules": schedules}
    text = json.dumps(cases | {"tensorflow": tf.__version__})
    (DATA / "rules.json").write_text(text.replace("[[", "[\n[").replace("], [", "],\n[") + "\n")


def grid(**choices):
    """Every combination of the values of the arguments."""
    for values in itertools.product(*choices.values()):
        yield dict(zip(choices, values, strict=True))


def optimizer_cases():
    """(kind, arguments, whether the learning rate decays)."""
    l1_l2 = list(grid(l1_regularization_strength=[0.0, 0.05], l2_regularization_strength=[0.0, 0.1]))
    shrinkage = {"l2_shrinkage_regularization_strength": 0.1}
    rms = grid(decay=[0.5, 0.99], momentum=[0.0, 0.9], centered=[False, True], epsilon=[0.01])
    tried = {
        "GradientDescent": [{}],
        "Momentum": grid(momentum=[0.5, 0.9], use_nesterov=[False, True]),
        "Adam": [{}, {"beta1": 0.5, "beta2": 0.9, "epsilon": 0.1}, {"beta1": 0.0, "beta2": 0.99}],
        "Adagrad": [{}, {"initial_accumulator_value": 0.01}],
        "RMSProp": [{}, *rms],
        "Adadelta": [{}, {"rho": 0.8, "epsilon": 1e-3}],
        "Ftrl": [
            *l1_l2,
            *(shrinkage | strengths for strengths in l1_l2),
            *grid(learning_rate_power=[-0.7, -1.0, 0.0], initial_accumulator_value=[0.2]),
            {"beta": 0.3, "l2_regularization_strength": 0.01},
        ],
        "ProximalGradientDescent": l1_l2,
        "ProximalAdagrad": [*l1_l2, {"initial_accumulator_value": 0.5}],
        "AdagradDA": [*l1_l2, {"initial_gradient_squared_accumulator_value": 0.5}],
    }
    for kind, all_arguments in tried.items():
        for number, arguments in enumerate(all_arguments):
            yield kind, arguments, number % 2 == 1


def schedule_cases():
    """(kind, arguments)."""
    tried = {
        "piecewise_constant": [
            {"boundaries": [20, 40], "values": [0.1, 0.03, 0.005]},
            {"boundaries": [0, 1, 5], "values": [0.4, 0.3, 0.2, 0.1]},
        ],
        "polynomial_decay": [
            {"decay_steps": 30},
            *grid(decay_steps=[7, 15], end_learning_rate=[0.0, 0.01], power=[0.5, 2.0], cycle=[False, True]),
        ],
        "cosine_decay": [{"decay_steps": 30}, {"decay_steps": 50, "alpha": 0.1}],
        "cosine_decay_restarts": [
            {"first_decay_steps": 10},
            *grid(first_decay_steps=[5, 12], t_mul=[1.0, 1.2, 1.5, 2.0], m_mul=[0.8], alpha=[0.1]),
        ],
        "linear_cosine_decay": [
            {"decay_steps": 50},
            {"decay_steps": 30, "num_periods": 2.5, "alpha": 0.1, "beta": 0.01},
        ],
    }
    for kind in ("exponential_decay", "natural_exp_decay", "inverse_time_decay"):
        tried[kind] = [{"decay_steps": 30, "decay_rate": 0.5}]
        tried[kind] += grid(decay_steps=[7, 7.5, 15], decay_rate=[0.6], staircase=[True])
    for kind, all_arguments in tried.items():
        for arguments in all_arguments:
            yield kind, arguments


def train(data, kind, arguments, decay):
    """(losses, final weights) of one optimizer."""
    with tf.Graph().as_default():
        step = v1.train.get_or_create_global_step()
        rate = v1.train.exponential_decay(RATE, step, **DECAYING) if decay else RATE
        needed = (rate, step) if kind == "AdagradDA" else (rate,)
        optimizer = getattr(v1.train, f"{kind}Optimizer")(*needed, **arguments)
        x, y = (v1.placeholder(tf.float32, data[key].shape[1:]) for key in ("x", "y"))
        w, b = (v1.get_variable(key, initializer=data[key], use_resource=True) for key in ("w", "b"))
        loss = tf.reduce_mean((x @ w + b - y) ** 2)
        train_op = optimizer.minimize(loss, global_step=step)
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            losses = [
                session.run([loss, train_op], {x: features, y: labels})[0]
                for features, labels in zip(data["x"], data["y"], strict=True)
            ]
            return losses, np.concatenate([session.run(variable).ravel() for variable in (w, b)])


def learning_rates(cases):
    """The learning rate of every case at every step.

    Without the graph optimizer: it makes ``step / n`` the product ``step * (1 / n)``, and so some periods one
    step too short. The recorded training runs show that it did not do so in the estimator.
    """
    with tf.Graph().as_default():
        step = v1.placeholder(tf.int64, [])
        rates = []
        for kind, arguments in cases:
            schedule = getattr(v1.train, kind)
            needed = (step,) if kind == "piecewise_constant" else (RATE, step)
            rates.append(schedule(*needed, **arguments))
        config = v1.ConfigProto()
        config.graph_options.rewrite_options.disable_meta_optimizer = True
        with v1.Session(config=config) as session:
            return np.array([session.run(rates, {step: i}) for i in range(SCHEDULE_STEPS)], np.float32).T


if __name__ == "__main__":
    main()
