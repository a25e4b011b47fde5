"""A training that ends by itself, or with SIGKILL at a given moment: one process of its own.

    python crash_training.py MODEL MODEL_DIR [MOMENT]

With the environment variable PROCESS=INDEX/COUNT/PORT it is one of several, each with one device.

MODEL is a name in `MODELS`, MOMENT a `Moment` as JSON. Every event is a line of the output, so that another program sees
how far the process came.
"""

import dataclasses
import json
import os
import signal
import sys
import threading


@dataclasses.dataclass(frozen=True)
class Moment:
    """The time of a kill: `delay` seconds after the `number`-th event of a kind, counted from 1."""

    event: str
    """start: of the process, before anything is imported; compile: of a program; loop: of training; save: a checkpoint
    is begun; file: a file or directory in MODEL_DIR is about to be made, renamed or removed; evaluate: one batch."""
    number: int
    delay: float


class Events:
    """Counts the events of this process, prints each, and kills the process at the moment."""

    def __init__(self, moment):
        self.moment, self.counts, self.lock = moment, {}, threading.Lock()

    def happen(self, event):
        with self.lock:
            self.counts[event] = number = self.counts.get(event, 0) + 1
        os.write(1, f"{event}\n".encode())
        moment = self.moment
        if moment is None or (moment.event, moment.number) != (event, number):
            return
        if not moment.delay:
            kill()
        timer = threading.Timer(moment.delay, kill)
        timer.daemon = True
        timer.start()


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def watch_files(events, directory):
    """Counts what Python does to the files below `directory`; what tensorstore writes is between two of these."""

    def hook(name, arguments):
        if name == "open":
            path, _, flags = arguments
            if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif name in ("os.mkdir", "os.rename", "os.remove", "os.rmdir"):
            path = arguments[0]
        else:
            return
        # Where a directory is removed, the names are relative to its descriptor.
        if isinstance(path, str) and (path.startswith(directory) or not os.path.isabs(path)):
            events.happen("file")

    sys.addaudithook(hook)


def watch_logs(events):
    """Counts the programs that are compiled, and the checkpoints that are begun, by the lines that are logged."""
    import logging

    import jax

    class Handler(logging.Handler):
        def emit(self, record):
            message = record.getMessage()
            if message.startswith("Compiling "):
                events.happen("compile")
            elif message.startswith("Saving checkpoint for"):
                events.happen("save")

    jax.config.update("jax_log_compiles", True)
    for name in ("jax", "jaxspec"):
        logger = logging.getLogger(name)
        logger.addHandler(Handler())
        logger.setLevel(logging.INFO)
    logging.getLogger("jax").propagate = False


def digits():
    """(model_fn, init_fn, features, labels, number of shards) of the main example, with fewer images."""
    import digits as example

    (images, labels), _ = example.load_digits()
    return example.model_fn, example.INIT_FN, images[:200], labels[:200], 1


def dropout():
    """The same of a perceptron with dropout, on two devices."""
    import flax.linen as nn
    import numpy as np
    import optax

    import jaxspec as js

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = nn.Dropout(0.3, deterministic=not train)(nn.relu(nn.Dense(64)(x)))
            return nn.Dense(10)(x)

    def model_fn(variables, features, labels, mode, params, rng):
        train = mode == js.ModeKeys.TRAIN
        logits = Net().apply(variables, features, train, rngs={"dropout": rng})
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return js.TPUEstimatorSpec(mode, loss=loss, train_op=js.minimize(optax.adamw(params["learning_rate"])))

    random = np.random.default_rng(0)
    return (
        model_fn,
        Net(),
        random.normal(size=(200, 32)).astype(np.float32),
        random.integers(0, 10, 200).astype(np.int32),
        2,
    )


MODELS = {"digits": digits, "dropout": dropout}
STEPS = 60
SAVE_STEPS = 8


def train(model, model_dir, events):
    """Trains to STEPS, with an evaluation at each checkpoint, whatever is in `model_dir` already."""
    import jax

    import jaxspec as js

    class Batches(js.hooks.SessionRunHook):
        def __init__(self, event):
            self.event = event

        def before_run(self, run_context):
            events.happen(self.event)

    model_fn, init_fn, features, labels, num_shards = MODELS[model]()
    if "PROCESS" in os.environ:
        index, num_shards, port = map(int, os.environ["PROCESS"].split("/"))
        jax.config.update("jax_num_cpu_devices", 1)
        jax.config.update("jax_enable_preemption_service", False)
        jax.distributed.initialize(
            f"127.0.0.1:{port}",
            num_shards,
            index,
            heartbeat_timeout_seconds=5,
            initialization_timeout=30,  # the other process may be killed before it joins
        )
    else:
        jax.config.update("jax_num_cpu_devices", num_shards)
    batch_size = 16
    estimator = js.TPUEstimator(
        model_fn,
        init_fn,
        model_dir=model_dir,
        params={"learning_rate": 2e-3},
        config=js.RunConfig(
            js.TPUConfig(iterations_per_loop=3, num_shards=num_shards),
            save_checkpoints_steps=SAVE_STEPS,
            save_checkpoints_secs=None,
            keep_checkpoint_max=2,
            tf_random_seed=7,
        ),
        train_batch_size=batch_size,
        eval_batch_size=batch_size,
    )
    inputs = js.inputs.numpy_input_fn(features, labels, num_epochs=None, shuffle=True, seed=3)
    evaluated = js.inputs.numpy_input_fn(features[:40], labels[:40])
    js.train_and_evaluate(
        estimator,
        js.TrainSpec(inputs, max_steps=STEPS, hooks=[Batches("loop")]),
        js.EvalSpec(evaluated, steps=None, throttle_secs=0, start_delay_secs=0, hooks=[Batches("evaluate")]),
    )


def main(model, model_dir, moment=None):
    events = Events(None if moment is None else Moment(**json.loads(moment)))
    events.happen("start")
    watch_files(events, model_dir)
    watch_logs(events)
    train(model, model_dir, events)


if __name__ == "__main__":
    main(*sys.argv[1:])
