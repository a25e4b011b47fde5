"""Every recorded training run again, through `TPUEstimator`: losses, weights, evaluations, predictions.

Each run is replayed on one shard, on four shards and with ``use_tpu=False``.

Two things need a word:

* The evaluation loss. TensorFlow's is the mean of the losses of the batches, ours the mean over all examples:
  they differ where the last batch is short. The expected loss is therefore computed from TensorFlow's own
  weights; ``test_tf_optimizers`` shows that the same computation, by batches, gives TensorFlow's number.
* Batch norm on four shards. TPUEstimator takes the statistics of each replica's own rows, which is not what
  was recorded. The model here takes their mean over `js.SHARD_AXIS`, and repeats the recording on any number
  of shards.
"""

import jax
import numpy as np
import pytest
import recorded_models as models
from trajectories import batches_of, flatten, load_recordings

import jaxspec as js

MAX_SHARDS = {"one_shard": 1, "four_shards": 4, "cpu_fallback": 1}


def replays():
    """(recording, setup) of each replay."""
    for recording in load_recordings():
        for setup in MAX_SHARDS:
            yield pytest.param(recording, setup, id=f"{recording.name}-{setup}")


@pytest.mark.slow(reason="three setups compile each recorded network, and train it for all recorded steps")
@pytest.mark.parametrize(("recording", "setup"), list(replays()))
def test_replay(recording, setup, tmp_path):
    num_shards = next(n for n in range(MAX_SHARDS[setup], 0, -1) if recording.batch_size % n == 0)
    eval_sizes = [evaluation["batch_size"] for evaluation in recording.evaluations.values()]
    predict_size = recording.prediction["batch_size"] if recording.prediction else 1
    host_calls = []
    estimator = js.TPUEstimator(
        make_model_fn(recording, host_calls),
        lambda: recording.initial,
        model_dir=tmp_path,
        use_tpu=setup != "cpu_fallback",
        train_batch_size=recording.batch_size,
        eval_batch_size=multiple_of(num_shards, max(eval_sizes, default=1)),
        predict_batch_size=multiple_of(num_shards, predict_size),
        config=js.RunConfig(
            js.TPUConfig(num_shards=num_shards, iterations_per_loop=25),
            save_checkpoints_steps=len(recording.losses),
            save_summary_steps=None,
            log_step_count_steps=None,
        ),
    )
    check_evaluations(recording, estimator, num_shards, global_step=0)
    for steps in recording.steps_of_calls:
        estimator.train(recording.train_batches, steps=steps)
    check_host_calls(recording, host_calls, num_shards)
    check_weights(recording, estimator)
    check_evaluations(recording, estimator, num_shards, global_step=len(recording.losses))
    if recording.prediction:
        check_predictions(recording, estimator, num_shards)


def make_model_fn(recording, host_calls):
    """The recorded model; its host call adds step, loss and learning rate to a list."""

    def on_host(*of_each_shard):
        host_calls.append(of_each_shard)

    def mean_over_shards(statistic):
        return jax.lax.pmean(statistic, js.SHARD_AXIS)

    def model_fn(variables, features, labels, mode, step):
        training = mode == js.ModeKeys.TRAIN
        outputs, updates = models.apply(recording, variables, features, training=training, average=mean_over_shards)
        if mode == js.ModeKeys.PREDICT:
            return js.TPUEstimatorSpec(mode, predictions=models.predictions(recording, outputs))
        loss = models.loss(recording, variables["params"], outputs, labels)
        if mode == js.ModeKeys.EVAL:
            return js.TPUEstimatorSpec(mode, loss=loss, eval_metrics=(metric_fn, [labels, outputs]))
        return js.TPUEstimatorSpec(
            mode,
            loss=loss,
            train_op=js.minimize(recording.optimizer(), updates=updates),
            host_call=(on_host, [step, loss, recording.schedule()(step)]),
        )

    metric_fn = classification_metrics if recording.is_classifier else regression_metrics
    return model_fn


def regression_metrics(labels, outputs):
    return {
        "mae": js.metrics.mean_absolute_error(labels, outputs),
        "mse": js.metrics.mean_squared_error(labels, outputs),
        "rmse": js.metrics.root_mean_squared_error(labels, outputs),
    }


def classification_metrics(labels, logits):
    num_classes, chosen = logits.shape[-1], logits.argmax(-1)
    of_class_1 = (labels == 1, chosen == 1)
    return {
        "accuracy": js.metrics.accuracy(labels, chosen),
        "auc_class_1": js.metrics.auc(labels == 1, np.asarray(jax.nn.softmax(logits))[:, 1]),
        "mean_iou": js.metrics.mean_iou(labels, chosen, num_classes),
        "mean_per_class_accuracy": js.metrics.mean_per_class_accuracy(labels, chosen, num_classes),
        "mean_top_logit": js.metrics.mean(logits.max(-1)),
        "precision_class_1": js.metrics.precision(*of_class_1),
        "recall_at_2": js.metrics.recall_at_k(labels, logits, 2),
        "recall_class_1": js.metrics.recall(*of_class_1),
    }


def check_host_calls(recording, host_calls, num_shards):
    """One call a step, in order, with an entry for each shard; losses and learning rates are TensorFlow's."""
    assert all(np.shape(tensor) == (num_shards,) for tensors in host_calls for tensor in tensors)
    steps, losses, learning_rates = np.mean(host_calls, axis=2).T
    np.testing.assert_array_equal(steps, np.arange(len(recording.losses)))
    np.testing.assert_allclose(losses[:3], recording.losses[:3], rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(losses, recording.losses, rtol=1e-4, atol=1e-7)
    floor = 1e-8 * recording.learning_rates.max()
    np.testing.assert_allclose(learning_rates, recording.learning_rates, rtol=1e-5, atol=floor)


def check_weights(recording, estimator):
    for collection, tree in recording.final.items():
        for name, expected in flatten(tree, collection).items():
            value = estimator.get_variable_value(name)
            np.testing.assert_allclose(value, expected, rtol=2e-3, atol=1e-5, err_msg=name)


def check_evaluations(recording, estimator, num_shards, global_step):
    """The evaluations that were made at this step."""
    variables = recording.final if global_step else recording.initial
    for tag, evaluation in recording.evaluations.items():
        if evaluation["result"]["global_step"] != global_step:
            continue
        rows, size, steps = (evaluation[key] for key in ("rows", "batch_size", "steps"))
        if num_shards > 1:  # the same rows in batches that the shards divide
            rows, size, steps = min(rows, size * (steps or rows)), multiple_of(num_shards, size), None
        features, labels = (batches_of(recording.data[key], rows, size) for key in ("eval_x", "eval_y"))
        batches = list(zip(features, labels, strict=True))
        result = estimator.evaluate(batches.copy, steps=steps)
        seen = np.concatenate(features[:steps]), np.concatenate(labels[:steps])
        expected = evaluation["result"] | {"loss": models.evaluate(recording, variables, *seen)}
        assert result.keys() == expected.keys(), tag
        for name, value in result.items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-3, atol=1e-5, err_msg=f"{tag}: {name}")


def check_predictions(recording, estimator, num_shards):
    rows, size = recording.prediction["rows"], multiple_of(num_shards, recording.prediction["batch_size"])
    batches = batches_of(recording.data["predict_x"], rows, size)
    by_example = list(estimator.predict(lambda: batches))
    assert len(by_example) == rows
    by_batch = list(estimator.predict(lambda: batches, yield_single_examples=False))
    for key, expected in recording.predicted.items():
        single = np.stack([example[key] for example in by_example])
        whole = np.concatenate([batch[key] for batch in by_batch])
        np.testing.assert_array_equal(single, whole, err_msg=key)
        np.testing.assert_allclose(whole, expected, rtol=2e-3, atol=1e-5, err_msg=key)
    assert [len(batch[key]) for batch in by_batch] == [len(batch) for batch in batches]
    assert all(sorted(each) == recording.prediction["keys"] for each in by_example + by_batch)


def multiple_of(factor, size):
    """``size``, or the next number that ``factor`` divides."""
    return -(-size // factor) * factor
