"""The model_fn of digits.py in a loop written by hand: the same steps without TPUEstimator.

    python examples/own_loop.py
    python examples/own_loop.py --shards 4      virtual devices where there is only a CPU

What stays with you here: when to save, what to log, short batches at the end of the data.
"""

import argparse

import jax
from digits import BATCH_SIZE, INIT_FN, PARAMS, STEPS, load_digits, model_fn

import jaxspec as js


def main(steps=STEPS, shards=None):
    """Trains for `steps` steps; returns the metrics on the held-out images."""
    train, test = load_digits()
    devices = jax.devices()[:shards]
    num_shards = len(devices)
    rows = max(1, BATCH_SIZE // num_shards)
    print(f"Running on {num_shards} x {devices[0].device_kind}, {rows} rows each.")

    # Pure functions of a state and one shard's batch. jit, vmap and scan may be used on them, too.
    train_step = js.replicate(js.make_train_step(model_fn, PARAMS), devices, donate_state=True)
    eval_step = js.replicate(js.make_eval_step(model_fn, PARAMS), devices)

    batches = js.inputs.numpy_input_fn(*train, batch_size=rows * num_shards, num_epochs=None, shuffle=True)(
        params={}, mode=js.ModeKeys.TRAIN
    )
    features, labels = next(batches)
    state = js.create_train_state(model_fn, INIT_FN, jax.random.key(0), features[:rows], labels[:rows], params=PARAMS)
    for step in range(1, steps + 1):
        state, spec = train_step(state, *js.shard((features, labels), num_shards))
        if step % 100 == 0 or step == steps:
            # To fetch is to wait for the devices, so not at every step.
            print(f"step {step}: loss {js.gather(spec).loss:.4f}")
        features, labels = next(batches)

    # All held-out images in one batch; those that the shards do not divide are left out.
    # (TPUEstimator.evaluate counts them too.)
    images, digits = test
    whole = len(images) // num_shards * num_shards
    spec = js.gather(eval_step(state, *js.shard((images[:whole], digits[:whole]), num_shards)))
    # From here on, nothing knows that there were shards.
    metrics = {name: metric.compute() for name, metric in spec.as_estimator_spec().eval_metric_ops.items()}
    print(f"Held-out accuracy: {metrics['accuracy']:.4f}, loss {spec.loss:.4f}")
    return metrics


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Trains the model of digits.py in a loop written by hand.")
    parser.add_argument("--steps", type=int, default=STEPS, help="default: %(default)s")
    parser.add_argument("--shards", type=int, help="devices to map over (default: all)")
    options = parser.parse_args()
    if options.shards:
        # Asks for virtual CPU devices; where there are accelerators it changes nothing.
        jax.config.update("jax_num_cpu_devices", options.shards)
    main(**vars(options))
