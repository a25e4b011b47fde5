"""A program that trains in a process of its own, once for each scenario, and is sent signals at a bad moment.

Prints for each one JSON line: how the process ended, how long it took after the first signal, and what it said.
JAX is imported once and not used before the fork.
"""

import json
import logging
import os
import signal
import sys
import threading
import time

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
from tiny_models import counting_init, counting_input, counting_model_fn, run_config

import jaxspec as js
from jaxspec._src.run import signals

PATIENCE_SECS = 1.0
LIMIT_SECS = 20


def send(name, count, gap, stamp):
    """Sends this process `count` signals, from a thread, so that any line may be interrupted."""

    def sender():
        with open(stamp, "w") as file:
            file.write(repr(time.time()))
        for _ in range(count):
            os.kill(os.getpid(), getattr(signal, name))
            time.sleep(gap)

    threading.Thread(target=sender, daemon=True).start()


class AtSave(js.hooks.CheckpointSaverListener):
    """Sends when the third checkpoint is about to be written."""

    def __init__(self, go):
        self.go, self.saves = go, 0

    def before_save(self, session, global_step):
        self.saves += 1
        if self.saves == 3:
            self.go()


def train(model_dir, scenario):
    jax.config.update("jax_num_cpu_devices", 1)
    signals.PATIENCE_SECS = PATIENCE_SECS
    sent = []

    def go():
        send(scenario["signal"], scenario["count"], scenario["gap"], model_dir + ".stamp")

    def host_call(step):
        if scenario["moment"] == "host_call" and int(step[0]) == 2 and not sent:
            sent.append(True)
            go()
            time.sleep(120)

    def model_fn(variables, features, mode, step):
        return counting_model_fn(variables, features, mode)._replace(host_call=(host_call, [step]))

    def slow_input():
        for i, batch in enumerate(counting_input()()):
            if i == 20 and scenario["moment"] == "input":
                go()
                time.sleep(120)
            yield batch

    listeners = [AtSave(go)] if scenario["moment"] == "save" else []
    config = run_config(save=5, every=5, num_shards=1)
    js.TPUEstimator(model_fn, counting_init, model_dir=model_dir, config=config, train_batch_size=4).train(
        slow_input, max_steps=100_000, saving_listeners=listeners
    )


def main(directory):
    for number, scenario in enumerate(json.load(sys.stdin)):
        model_dir = os.path.join(directory, str(number))
        said = model_dir + ".said"
        child = os.fork()
        if child == 0:
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
            logging.basicConfig()
            train(model_dir, scenario)
            return
        # One that hangs is a failure of the test that starts this, and not the end of it.
        watch = threading.Timer(LIMIT_SECS, os.kill, (child, signal.SIGKILL))
        watch.start()
        _, status = os.waitpid(child, 0)
        watch.cancel()
        ended = time.time()
        with open(model_dir + ".stamp") as file:
            took = ended - float(file.read())
        with open(said) as file:
            print(
                json.dumps({"status": os.waitstatus_to_exitcode(status), "took": took, "said": file.read()}), flush=True
            )


if __name__ == "__main__":
    main(sys.argv[1])
