"""The optax optimizers and schedules that stand for TensorFlow's, and the models, tried in a loop by hand.

Nothing of jaxspec takes part: where this fails, the replay through the estimator has no chance.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import recorded_models as models
from trajectories import batches_of, flatten, load_recordings

RECORDINGS = load_recordings()
EVALUATED = [recording for recording in RECORDINGS if recording.evaluations]


def near(rtol, scale=1e-3):
    """Keywords of `assert_allclose`: ``rtol`` relative to the value, or to ``scale`` if that is larger."""
    return {"rtol": rtol, "atol": rtol * scale}


def named(recording):
    return recording.name


@pytest.mark.parametrize("recording", RECORDINGS, ids=named)
def test_training(recording):
    losses, learning_rates, variables = train(recording)
    np.testing.assert_allclose(losses[:3], recording.losses[:3], **near(1e-5))
    np.testing.assert_allclose(losses, recording.losses, **near(1e-4))
    expected = recording.learning_rates
    np.testing.assert_allclose(learning_rates, expected, **near(1e-5, scale=1e-3 * expected.max()))
    final, weights = flatten(recording.final), flatten(variables)
    assert weights.keys() == final.keys()
    for name, value in weights.items():
        np.testing.assert_allclose(value, final[name], rtol=2e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("recording", EVALUATED, ids=named)
def test_evaluation(recording):
    """TensorFlow's loss is the mean over batches: a short last one weighs as much as a full one."""
    for tag, evaluation in recording.evaluations.items():
        variables = recording.initial if evaluation["result"]["global_step"] == 0 else recording.final
        which = [evaluation[key] for key in ("rows", "batch_size", "steps")]
        batches = [batches_of(recording.data[key], *which) for key in ("eval_x", "eval_y")]
        losses = [models.evaluate(recording, variables, *batch) for batch in zip(*batches, strict=True)]
        np.testing.assert_allclose(np.mean(losses), evaluation["result"]["loss"], **near(1e-5), err_msg=tag)


@pytest.mark.parametrize("recording", EVALUATED, ids=named)
def test_prediction(recording):
    features = recording.data["predict_x"][: recording.prediction["rows"]]
    predicted = models.predictions(recording, models.apply(recording, recording.final, features)[0])
    assert sorted(predicted) == recording.prediction["keys"]
    for key, value in predicted.items():
        np.testing.assert_allclose(value, recording.predicted[key], rtol=1e-4, atol=1e-5, err_msg=key)


def train(recording):
    """(the loss of each step, its learning rate, the variables after the last)."""
    optimizer = recording.optimizer()

    def loss_and_updates(params, collections, features, labels):
        variables = {"params": params, **collections}
        outputs, updates = models.apply(recording, variables, features, training=True)
        return models.loss(recording, params, outputs, labels), updates

    gradient = jax.value_and_grad(loss_and_updates, has_aux=True)

    def step(state, batch):
        params, collections, slots, count = state
        (loss, updates), gradients = gradient(params, collections, *batch)
        changes, slots = optimizer.update(gradients, slots, params)
        state = optax.apply_updates(params, changes), updates, slots, count + 1
        return state, (loss, recording.schedule()(count))

    @jax.jit
    def run(params, collections, batches):
        state = params, collections, optimizer.init(params), jnp.int32(0)
        return jax.lax.scan(step, state, batches)

    calls = [itertools.islice(recording.train_batches(), steps) for steps in recording.steps_of_calls]
    collections = dict(recording.initial)
    params = collections.pop("params")
    stacked = jax.tree.map(lambda *arrays: np.stack(arrays), *itertools.chain(*calls))
    (params, collections, *_), (losses, learning_rates) = run(params, collections, stacked)
    return losses, learning_rates, {"params": params, **collections}
