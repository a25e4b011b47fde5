"""What several processes cost: an exchange between them, and training in two against training in one.

    python benchmarks/processes.py [--steps 2000] [--exchanges 500]

All on this machine, on virtual CPU devices. An exchange is what the processes do before each loop and each dispatch of
training: each gives a small value and gets those of all. It is timed alone, and inside a training, where the devices
work meanwhile. The training is that of the MLP of benchmarks/workloads.py; one process with eight devices is compared
with two processes with four each, and with four with two each.

What the devices wait for is measured with devices that sleep: a step of 10 ms that needs no core, and 10 steps a
dispatch and a loop. Between the last step of a dispatch and the first of the next, a device waits longer than between
two steps of one dispatch. If it waited for the exchanges, it would wait still longer when each of them lasts 20 ms
more, which is measured, too. (With one device a process JAX runs a program on a CPU in the thread that calls it:
nothing overlaps then.)
"""

import argparse
import collections
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import time

os.environ["JAX_PLATFORMS"] = "cpu"
DEVICES = 8
WARM_STEPS = 300
BATCH = 512
SLEEP_SECS, LOOP_STEPS, LONGER_SECS = 0.01, 10, 0.02


class Stopwatch:
    """Wraps a function and keeps the seconds of each call."""

    def __init__(self, function):
        self.function, self.secs = function, []

    def __call__(self, *args, **kwargs):
        began = time.perf_counter()
        try:
            return self.function(*args, **kwargs)
        finally:
            self.secs.append(time.perf_counter() - began)


def child(process, processes, address, steps, exchanges):
    """One process: prints its figures as JSON."""
    import jax
    import numpy as np
    import optax
    from workloads import loss_of, workload

    import jaxspec as js
    from jaxspec._src.device.processes import Together, open_exchange

    jax.config.update("jax_num_cpu_devices", DEVICES // processes)
    joining = dict(coordinator_address=address, num_processes=processes, process_id=process) if processes > 1 else {}

    work = workload("MLP")

    def model_fn(variables, features, labels, mode):
        loss = loss_of(work.logits(variables, features), labels)
        return js.TPUEstimatorSpec(mode, loss=loss, train_op=js.minimize(optax.adam(1e-3)))

    config = js.RunConfig(save_checkpoints_steps=None, save_checkpoints_secs=None, progress_bar=False, **joining)
    model_dir = os.environ["MODEL_DIR"]
    estimator = js.TPUEstimator(model_fn, work.module, model_dir=model_dir, config=config, train_batch_size=BATCH)
    rng = np.random.default_rng(0)
    rows = BATCH // processes
    batch = rng.normal(size=(rows, *work.row)).astype(np.float32), rng.integers(0, 10, rows).astype(np.int32)

    def train(steps):
        began = time.perf_counter()
        estimator.train(lambda: itertools.repeat(batch), steps=steps, resume_input=False)
        return time.perf_counter() - began

    train(WARM_STEPS)
    gather = Stopwatch(Together.gather)
    Together.gather = lambda *args: gather(*args)
    figures = {"train": train(steps), "in_training": list(gather.secs)}
    if processes > 1:
        gather.secs.clear()
        with open_exchange("benchmark", timeout_secs=60) as exchange:
            for _ in range(exchanges):
                exchange.gather("value", (100, False, None))
        figures["alone"] = gather.secs[exchanges // 10 :]
        figures["waits"] = waits_of_devices(joining, BATCH // processes, gather)
    print(json.dumps(figures))


def waits_of_devices(joining, rows, gather, rounds=3, loops=15):
    """How much longer a device waits between two dispatches than between two steps of one, in seconds.

    As a list of the waits with exchanges as they are, and one of those with longer exchanges.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    import jaxspec as js
    from jaxspec._src.device.processes import Together

    slept = collections.defaultdict(list)

    def sleep(device, x):
        began = time.perf_counter()
        time.sleep(SLEEP_SECS)
        slept[int(device)].append((began, time.perf_counter()))
        return x

    def model_fn(variables, features, mode):
        device = jax.lax.axis_index(js.SHARD_AXIS)
        x = features * variables["params"]
        x = jax.pure_callback(sleep, jax.ShapeDtypeStruct(x.shape, x.dtype), device, x, vmap_method="sequential")
        x = jax.lax.stop_gradient(x)
        train_op = js.minimize(optax.sgd(1e-3), loss=lambda variables: (x * variables["params"]).mean())
        return js.TPUEstimatorSpec(mode, loss=x.mean(), train_op=train_op)

    config = js.RunConfig(
        tpu_config=js.TPUConfig(iterations_per_loop=LOOP_STEPS),
        save_checkpoints_steps=None,
        save_checkpoints_secs=None,
        progress_bar=False,
        **joining,
    )
    model_dir = os.path.join(os.environ["MODEL_DIR"], "sleeping")
    estimator = js.TPUEstimator(
        model_fn, lambda: {"params": jnp.ones(())}, model_dir=model_dir, config=config, train_batch_size=BATCH
    )
    batch = np.ones(rows, np.float32)
    longer = 0.0

    def longer_gather(*args):
        values = gather(*args)
        time.sleep(longer)
        return values

    Together.gather = longer_gather
    waits = ([], [])
    for round in range(-1, 2 * rounds):  # the first one compiles
        longer = LONGER_SECS * (round % 2)
        slept.clear()
        estimator.train(lambda: itertools.repeat(batch), steps=loops * LOOP_STEPS, resume_input=False)
        steps = slept[min(slept)]
        gaps = [after[0] - before[1] for before, after in itertools.pairwise(steps)]
        between = gaps[LOOP_STEPS - 1 :: LOOP_STEPS]
        within = [gap for i, gap in enumerate(gaps) if (i + 1) % LOOP_STEPS]
        if round >= 0:
            waits[round % 2].extend(gap - statistics.median(within) for gap in between)
    return waits


def run(processes, steps, exchanges, model_dir):
    """The figures of process 0 of a program."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        address = f"localhost:{listener.getsockname()[1]}"
    arguments = [str(processes), address, str(steps), str(exchanges)]
    children = [
        subprocess.Popen(
            [sys.executable, __file__, "--child", str(process), *arguments],
            env={**os.environ, "MODEL_DIR": model_dir},
            stdout=subprocess.PIPE,
            text=True,
        )
        for process in range(processes)
    ]
    try:
        outputs = [child.communicate(timeout=600)[0] for child in children]
    finally:
        for each in children:
            each.kill()
    return json.loads(outputs[0].splitlines()[-1])


def main():
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--exchanges", type=int, default=500)
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        process, processes, address, steps, exchanges = options.child
        child(int(process), int(processes), address, int(steps), int(exchanges))
        return
    rates = {}
    for processes in (1, 2, 4):
        with tempfile.TemporaryDirectory() as model_dir:
            figures = run(processes, options.steps, options.exchanges, model_dir)
        rates[processes] = options.steps / figures["train"]
        print(f"{processes} x {DEVICES // processes} devices: {rates[processes]:.0f} steps/s", end="")
        if processes == 1:
            print()
            continue
        waits = figures["in_training"]
        alone, inside = (statistics.median(secs) for secs in (figures["alone"], waits))
        print(
            f", {rates[processes] / rates[1]:.2f} of one process. An exchange takes {1e3 * alone:.2f} ms alone "
            f"({alone / 0.1:.1%} of a dispatch of 100 ms), {1e3 * inside:.2f} ms in training, where {len(waits)} of "
            f"them are {sum(waits) / figures['train']:.1%} of the time."
        )
        waits, longer = (statistics.median(secs) for secs in figures["waits"])
        print(
            f"  Between dispatches a device waits {1e3 * waits:.2f} ms, and {1e3 * longer:.2f} ms if each "
            f"exchange takes {1e3 * LONGER_SECS:.0f} ms more."
        )


if __name__ == "__main__":
    main()
