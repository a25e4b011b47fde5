"""Handwritten digits, from the images to predictions: the main example.

    python examples/digits.py                   trains with an evaluation at each checkpoint, predicts
    python examples/digits.py --steps 800       goes on from the last checkpoint
    python examples/digits.py --shards 4        on 4 devices; virtual ones where there is only a CPU
    python examples/digits.py --cpu-fallback    the same model_fn with use_tpu=False
    python examples/digits.py --export          writes the trained model to runs/digits/export, for serve.py

The data are scikit-learn's 1,797 images of 8 x 8 pixels; nothing is downloaded. The default 400 steps gave a
held-out accuracy of 0.99 in 13 s of processor time (2 CPU cores, jax 0.10.2, one shard).
"""

import argparse
import logging
import sys

import flax.linen as nn
import jax
import numpy as np
import optax

import jaxspec as js

STEPS = 400
BATCH_SIZE = 64
TEST_SIZE = 360
SHADES = " .:+%@"

# The averages of the weights, slower than the weights themselves, are what is evaluated.
AVERAGES = js.ExponentialMovingAverage(0.99)


class Net(nn.Module):
    """A small convolutional network with batch norm and dropout."""

    @nn.compact
    def __call__(self, images, train=False):
        x = images
        for channels in (16, 32):
            x = nn.Conv(channels, (3, 3), use_bias=False)(x)
            # Each shard normalises by its own rows, as on TPU. With axis_name=js.SHARD_AXIS the statistics
            # would be those of the global batch.
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
            x = nn.max_pool(nn.relu(x), (2, 2), strides=(2, 2))
        x = x.reshape(x.shape[0], -1)
        x = nn.Dropout(0.25, deterministic=not train)(x)
        return nn.Dense(10)(x)


def metric_fn(labels, classes):
    """Runs on the host, on NumPy arrays of the whole batch."""
    return {
        "accuracy": js.metrics.accuracy(labels, classes),
        "accuracy_per_digit": js.metrics.mean_per_class_accuracy(labels, classes, 10),
        "confusion": js.metrics.confusion_matrix(labels, classes, 10),
    }


def write_summaries(step, loss, accuracy, probability, image):
    """Runs on the host, once a step, while the devices go on. For scalars alone `js.summary.host_call` would do."""
    js.summary.scalar("loss", loss)
    js.summary.scalar("accuracy", accuracy)
    with js.summary.record_if(step % 50 == 0):
        js.summary.histogram("probability", probability)
        js.summary.image("least sure", image[probability.argmin()])


def model_fn(variables, features, labels, mode, params, step, rng):
    """One shard's batch: features [rows, 8, 8, 1], labels [rows]."""
    updates = None
    if mode == js.ModeKeys.TRAIN:
        logits, updates = Net().apply(variables, features, train=True, rngs={"dropout": rng}, mutable=["batch_stats"])
    else:
        logits = Net().apply(AVERAGES.apply(variables), features)

    classes, probability = logits.argmax(-1), jax.nn.softmax(logits).max(-1)
    predictions = {"class": classes, "probability": probability, "image": features}
    if mode == js.ModeKeys.PREDICT:
        # What an export returns; without this, all predictions.
        answers = js.export.PredictOutput({"class": classes, "probability": probability})
        return js.TPUEstimatorSpec(mode, predictions=predictions, export_outputs={"serving_default": answers})

    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    written = {"step": step, "loss": loss, "accuracy": (classes == labels).mean()}
    return js.TPUEstimatorSpec(
        mode,
        loss=loss,
        train_op=js.minimize(optax.adam(params["learning_rate"]), updates=updates, after=AVERAGES.update(step)),
        eval_metrics=(metric_fn, [labels, classes]),
        host_call=(write_summaries, {**written, "probability": probability, "image": features}),
    )


def serving_input_receiver_fn():
    """Callers of an export pass `image`, [rows, 8, 8, 1]. The features are that array."""
    tensors = {"image": js.export.TensorSpec((None, 8, 8, 1), np.float32)}
    return js.export.ServingInputReceiver(lambda arrays: arrays["image"], tensors)


INIT_FN = AVERAGES.init(Net())
PARAMS = {"learning_rate": 2e-3}


def load_digits():
    """(images to train on, their labels), (held-out images, their labels)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = (data.images / 16).astype(np.float32)[..., None]
    labels = data.target.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(images))
    test, train = order[:TEST_SIZE], order[TEST_SIZE:]
    return (images[train], labels[train]), (images[test], labels[test])


def side_by_side(images):
    """Images `[n, 8, 8, 1]` as lines of text."""
    shades = np.array(list(SHADES))[np.rint(images[..., 0] * (len(SHADES) - 1)).astype(int)]
    lines = ("    ".join("".join(np.repeat(row, 2)) for row in line) for line in shades.swapaxes(0, 1))
    return "\n".join(line.rstrip() for line in lines)


def _captions(texts):
    return "    ".join(f"{text:16}" for text in texts).rstrip()


def main(steps=STEPS, shards=None, model_dir="runs/digits", cpu_fallback=False, export=False):
    """Trains up to global step `steps`; returns the results on the held-out images."""
    (x_train, y_train), (x_test, y_test) = load_digits()
    # Without --shards all devices are used. How many there are is not asked for here: the estimator first joins the
    # processes of a cluster, if this is one of them.
    shards = 1 if cpu_fallback else shards
    batch_size = max(1, BATCH_SIZE // shards) * shards if shards else BATCH_SIZE
    estimator = js.TPUEstimator(
        model_fn,
        init_fn=INIT_FN,
        model_dir=model_dir,
        params=PARAMS,
        config=js.RunConfig(
            tpu_config=js.TPUConfig(iterations_per_loop=50, num_shards=shards),
            save_checkpoints_steps=200,
            log_step_count_steps=50,
        ),
        use_tpu=not cpu_fallback,
        train_batch_size=batch_size,
        eval_batch_size=batch_size,
        predict_batch_size=batch_size,
    )

    done = 0 if estimator.latest_checkpoint() is None else js.load_global_step(model_dir)
    if done and done >= steps:
        print(f"Finished already: {model_dir} holds step {done}. Ask for more --steps or another --model-dir.")
    elif done:
        print(f"Resuming from step {done}: {estimator.latest_checkpoint()}")
    else:
        print(f"Training on {len(x_train)} images; {len(x_test)} are held out.")
    # `max_steps` is the global step to reach. The input reports its position, so a resumed run goes on with
    # the example that follows.
    train_input_fn = js.inputs.numpy_input_fn(x_train, y_train, num_epochs=None, shuffle=True)
    eval_input_fn = js.inputs.numpy_input_fn(x_test, y_test)
    hooks = [
        js.hooks.LoggingTensorHook({"accuracy of this batch": "accuracy"}, every_n_iter=200),
        js.hooks.stop_if_no_decrease_hook(estimator, "loss", max_steps_without_decrease=1000),
    ]
    results, _ = js.train_and_evaluate(
        estimator,
        js.TrainSpec(train_input_fn, max_steps=steps, hooks=hooks),
        js.EvalSpec(eval_input_fn, steps=None, throttle_secs=0),
    )
    if results is None:  # there was nothing to train
        results = estimator.evaluate(eval_input_fn)
    print(f"\nHeld-out accuracy after {results['global_step']} steps: {results['accuracy']:.4f}")

    if jax.process_count() > 1:
        return results  # each process would predict its own share of the images
    predictions = list(estimator.predict(js.inputs.numpy_input_fn(x_test)))
    unsure = sorted(range(len(predictions)), key=lambda i: predictions[i]["probability"])[:5]
    print("\nThe images that it is least sure of:\n")
    print(side_by_side(np.stack([predictions[i]["image"] for i in unsure])))
    print(_captions(f"{predictions[i]['class']}, {predictions[i]['probability']:.0%} sure" for i in unsure))
    print(_captions(f"(it is {y_test[i]})" for i in unsure))

    if export:
        path = estimator.export_saved_model(f"{model_dir}/export", serving_input_receiver_fn)
        print(f"\nExport: {path}\nServe it: python examples/serve.py {path}")

    print(f"\nCheckpoints: {estimator.model_dir}")
    print(f"TensorBoard: tensorboard --logdir {model_dir}")
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Trains a small network on handwritten digits.")
    parser.add_argument("--steps", type=int, default=STEPS, help="the step to train to (default: %(default)s)")
    parser.add_argument("--shards", type=int, help="devices to map over (default: all)")
    parser.add_argument("--model-dir", default="runs/digits", help="default: %(default)s")
    parser.add_argument("--cpu-fallback", action="store_true", help="one CPU device, as with use_tpu=False")
    parser.add_argument("--export", action="store_true", help="write the trained model to MODEL_DIR/export")
    options = parser.parse_args()
    logging.basicConfig(stream=sys.stdout, level=logging.WARNING, format="%(message)s")
    logging.getLogger("jaxspec").setLevel(logging.INFO)
    if options.shards:
        # Asks for virtual CPU devices; where there are accelerators it changes nothing.
        jax.config.update("jax_num_cpu_devices", options.shards)
    main(**vars(options))
