"""Trainings that are killed with SIGKILL at seeded random moments and started again, until they end.

    make crash-test ARGS="--kills 100 --seed 7"

The last checkpoint of each must equal that of an undisturbed training, bit for bit: weights, optimizer state, random
key, global step, position of the input. After every kill each checkpoint there is must be whole.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import json
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import crash_training
from crash_training import MODELS, STEPS, Moment

from jaxspec._src.base.arrays import named_leaves
from jaxspec._src.checkpoint import checksums
from jaxspec._src.checkpoint.restore import StoredCheckpoint
from jaxspec.checkpoint import checkpoint_step, checkpoint_steps, latest_checkpoint

ROOT = Path(__file__).parents[2]
TIMEOUT_SECS = 300
"""Of one process."""

# Kind of event, the highest number of it, the longest delay in seconds. A whole training has more events than this, so
# that one is killed several times.
MOMENTS = {
    "start": (1, 6.0),
    "compile": (15, 0.3),
    "loop": (12, 0.02),
    "save": (4, 0.2),
    "file": (400, 0.0),
    "evaluate": (14, 0.05),
}


def draw(generator):
    """A random `Moment`."""
    event = generator.choice(list(MOMENTS))
    most, delay = MOMENTS[event]
    return Moment(event, generator.randint(1, most), generator.uniform(0, delay))


def run(model, model_dir, moment=None, process=None):
    """Trains in a process of its own; returns (exit code, what it printed, what it logged).

    Args:
      process: "INDEX/COUNT/PORT", if it is one of several.
    """
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "examples"), *filter(None, sys.path)])
    if moment is not None and moment.event == "compile":
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    if process is not None:
        environment["PROCESS"] = process
    command = [sys.executable, crash_training.__file__, model, str(model_dir)]
    if moment is not None:
        command.append(json.dumps(dataclasses.asdict(moment)))
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECS, env=environment)
    return done.returncode, done.stdout.split(), done.stderr


def run_together(model, model_dir, moment=None):
    """As `run`, for a training in two processes, of which the moment ends one. The other must end then, too."""
    victim = 0 if moment is None else moment.number % 2
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(run, model, model_dir, moment if index == victim else None, f"{index}/2/{port}")
            for index in range(2)
        ]
        code, printed, logged = runs[victim].result()
        other, _, others_log = runs[1 - victim].result(timeout=60)
    # JAX aborts it, unless an operation of the devices has failed before.
    assert other in ((0, 1, -6) if code else (0,)), others_log
    return code, printed, logged


def last_arrays(model_dir):
    """Everything in the last checkpoint, by name."""
    stored = StoredCheckpoint(latest_checkpoint(str(model_dir)))
    leaves = named_leaves(stored.parts)
    return dict(zip(leaves, stored.load_on_host(list(leaves.values())), strict=True))


def check_whole(model_dir):
    """Raises an error unless every checkpoint there is whole."""
    for step in checkpoint_steps(str(model_dir)):
        path = str(Path(model_dir) / f"model.ckpt-{step}")
        checksums.verify(path, checkpoint_step(path))


def check_equal(arrays, expected):
    """Raises an error unless the two have the same names, dtypes and bytes."""
    assert arrays.keys() == expected.keys()
    differing = [name for name in arrays if arrays[name].tobytes() != expected[name].tobytes()]
    assert not differing, f"these differ from the undisturbed run's: {', '.join(differing)}"
    assert all(arrays[name].dtype == expected[name].dtype for name in arrays)


def leftovers(model_dir):
    """What a kill has left in the middle: partial or removed."""
    names = os.listdir(model_dir) if os.path.isdir(model_dir) else []
    return {match[1] for name in names if (match := re.fullmatch(r"model\.ckpt-\d+\.(partial|removed)-.*", name))}


class Report:
    """Where the kills fell."""

    def __init__(self):
        self.trainings, self.kills = 0, 0
        self.events, self.during, self.left, self.steps = (collections.Counter() for _ in range(4))

    def killed(self, moment, printed, model_dir):
        self.kills += 1
        self.events[moment.event] += 1
        self.during[next(event for event in reversed(printed) if event != "file")] += 1
        self.left.update(leftovers(model_dir) or {"nothing"})
        self.steps[max(checkpoint_steps(str(model_dir)), default=None)] += 1

    def __str__(self):
        def counts(counter):
            return ", ".join(f"{name} {count}" for name, count in counter.most_common())

        return (
            f"{self.kills} kills in {self.trainings} trainings, each of which ended bit for bit as undisturbed.\n"
            f"moments drawn: {counts(self.events)}\n"
            f"last event before the kill, files aside: {counts(self.during)}\n"
            f"left behind in the middle: {counts(self.left)}\n"
            f"last checkpoint at the kill: {counts(self.steps)}"
        )


def crash_test(kills, seed, directory, run=run, log=print):
    """Kills so many times, in as many trainings as that takes; the models take turns.

    Args:
      directory: an empty one, for the checkpoints.
      run: starts a training, as `run` above does.

    Returns:
      A `Report`.
    """
    generator, report, directory = random.Random(seed), Report(), Path(directory)
    undisturbed = {}
    for model in MODELS:
        code, printed, logged = run(model, directory / model)
        assert code == 0, logged
        undisturbed[model] = last_arrays(directory / model)
        log(f"{model}, undisturbed: {counts_of(printed)}")
    while report.kills < kills:
        model = list(MODELS)[report.trainings % len(MODELS)]
        model_dir = directory / f"{model}-{report.trainings}"
        code = None
        while code != 0:
            moment = draw(generator) if report.kills < kills else None
            is_done = STEPS in checkpoint_steps(str(model_dir))  # the kill came after the last checkpoint
            code, printed, logged = run(model, model_dir, moment)
            log(
                f"{model_dir.name}: {moment}: exit code {code} after {printed[-1:]}, {checkpoint_steps(str(model_dir))}"
            )
            assert code in (0, -9), logged
            warnings = [line for line in logged.splitlines() if line.startswith("WARNING:jaxspec")]
            expected = ["has ended without saying so", *(["Skipping training since"] if is_done else [])]
            assert all(any(text in line for text in expected) for line in warnings), logged
            check_whole(model_dir)
            if code:
                report.killed(moment, printed, model_dir)
        assert checkpoint_steps(str(model_dir))[-1] == STEPS
        assert is_done or not leftovers(model_dir)  # the next training removes them, unless there is nothing to train
        check_equal(last_arrays(model_dir), undisturbed[model])
        report.trainings += 1
    return report


def counts_of(printed):
    return dict(collections.Counter(printed))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, choices=[1, 2], default=1, help="of two, one is killed")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        # Compiling is most of a short run, and a killed process may have been writing here, too.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(directory, "programs")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        start = run if options.processes == 1 else run_together
        print(crash_test(options.kills, options.seed, directory, start))
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
