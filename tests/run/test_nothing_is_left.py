"""No thread, open file, socket, child process or temporary file outlives train, evaluate or predict, however they
end."""

import collections
import dataclasses
import gc
import itertools
import os
import pathlib
import re
import signal
import tempfile
import threading
import time

import jax
import numpy as np
import psutil
import pytest
from tiny_models import counting_init, counting_input, counting_model_fn, run_config

import jaxspec as js
from jaxspec._src.checkpoint import checksums
from jaxspec._src.checkpoint.claim_holder import Holder
from jaxspec.hooks import SessionRunHook


class Mine(Exception):
    """An error of the user's code."""


def fails(*args, **kwargs):
    raise Mine("on purpose")


def interrupts(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.1)  # Python calls the handler


class Calls(SessionRunHook):
    """Calls a function in one of its methods, in the second loop where there are several."""

    def __init__(self, method, do):
        self.calls = 0

        def call(*args):
            self.calls += 1
            if self.calls == 2 or not method.endswith("_run"):
                do()

        setattr(self, method, call)


class Run:
    """Makes estimators, and calls their verbs."""

    def __init__(self, directory, monkeypatch):
        self.directory, self.monkeypatch = directory, monkeypatch
        self.model_dir = str(directory / "model")
        (directory / "data").write_text("what the input reads")

    def estimator(self, fn=counting_model_fn, init=counting_init, **kwargs):
        sizes = dict.fromkeys(("train_batch_size", "eval_batch_size", "predict_batch_size"), 4)
        config = run_config(save=2, every=2, num_shards=1, **kwargs)
        return js.TPUEstimator(fn, init, model_dir=self.model_dir, config=config, **sizes)

    def input(self, count=8, at=None, do=None):
        """Reads from an open file, and does something before one of its batches."""

        def input_fn():
            with open(self.directory / "data"):
                for i, batch in enumerate(counting_input(count)()):
                    if i == at:
                        do()
                    yield batch

        return input_fn

    def train(self, *args, **kwargs):
        kwargs = {"max_steps": 6, **kwargs}
        return self.estimator(*args).train(kwargs.pop("input_fn", self.input()), **kwargs)

    def evaluate(self, *args, **kwargs):
        return self.estimator(*args).evaluate(kwargs.pop("input_fn", self.input()), **kwargs)

    def predict(self, *args, **kwargs):
        return self.estimator(*args).predict(kwargs.pop("input_fn", self.input()), **kwargs)


def with_host_call(do):
    """The counting model, whose host_call does something at step 3."""

    def host_call(step):
        if int(step[0]) == 3:
            do()

    def model_fn(variables, features, mode, step):
        return counting_model_fn(variables, features, mode)._replace(host_call=(host_call, [step]))

    return model_fn


def with_metric_fn(do):
    def metric_fn(x):
        return do()

    def model_fn(variables, features, mode):
        return counting_model_fn(variables, features, mode)._replace(eval_metrics=(metric_fn, [features["x"]]))

    return model_fn


def full_disk(*args):
    raise OSError(28, "No space left on device")


def a_checkpoint_fails(run):
    with run.monkeypatch.context() as patch:
        patch.setattr(checksums, "write_manifest", full_disk)
        run.train()


def a_restart(run):
    def lost():
        raise jax.errors.JaxRuntimeError("UNAVAILABLE: on purpose")

    run.estimator(max_restarts=1).train(run.input(), max_steps=6, hooks=[Calls("after_run", lost)])


def a_claim_of_another(run):
    os.makedirs(run.model_dir)
    parent = psutil.Process(os.getppid())
    holder = Holder.of_this_process(time.time())
    holder = dataclasses.replace(holder, pid=parent.pid, process_began=parent.create_time())
    holder.write(os.path.join(run.model_dir, ".trainer.json"))
    run.train()


def nan_input():
    yield from counting_input(3)()
    yield {"x": np.full(4, np.nan, np.float32)}


def train_and_evaluate(run, **kwargs):
    spec = js.EvalSpec(run.input(), steps=None, throttle_secs=0, **kwargs)
    js.train_and_evaluate(run.estimator(), js.TrainSpec(run.input(), max_steps=6), spec)


class FailingExporter(js.Exporter):
    name = "failing"
    export = fails


def closed(predictions):
    next(predictions)
    predictions.close()


def let_go(predictions):
    """Neither closed nor read to its end."""
    next(predictions)


ENDS_WELL = {
    "train": lambda run: run.train(),
    "train, and the input ends": lambda run: run.train(max_steps=100),
    "train, skipped": lambda run: run.train().train(run.input(), max_steps=6),
    "train, a restart": a_restart,
    "evaluate": lambda run: run.evaluate(),
    "evaluate, trained": lambda run: run.train().evaluate(run.input()),
    "evaluate, some steps": lambda run: run.evaluate(steps=3),
    "predict": lambda run: list(run.predict()),
    "predict, closed early": lambda run: closed(run.predict()),
    "predict, let go": lambda run: let_go(run.predict()),
    "predict, never begun": lambda run: run.predict(),
    "train and evaluate": train_and_evaluate,
}

ENDS_WITH_AN_ERROR = {
    **{
        f"{verb}, {what}": (error, lambda run, verb=verb, how=how: list(getattr(run, verb)(**how(run)) or ()))
        for verb, (what, error, how) in itertools.product(
            ("train", "evaluate", "predict"),
            [
                ("input_fn fails", Mine, lambda run: {"input_fn": fails}),
                ("its first batch fails", Mine, lambda run: {"input_fn": run.input(at=0, do=fails)}),
                ("a later batch fails", Mine, lambda run: {"input_fn": run.input(at=5, do=fails)}),
                ("no batch fits", TypeError, lambda run: {"input_fn": lambda: [{"x": "a string"}]}),
                ("begin fails", Mine, lambda run: {"hooks": [Calls("begin", fails)]}),
                ("after_create_session fails", Mine, lambda run: {"hooks": [Calls("after_create_session", fails)]}),
                ("before_run fails", Mine, lambda run: {"hooks": [Calls("before_run", fails)]}),
                ("after_run fails", Mine, lambda run: {"hooks": [Calls("after_run", fails)]}),
                ("end fails", Mine, lambda run: {"hooks": [Calls("end", fails)]}),
                ("Ctrl-C in a hook", KeyboardInterrupt, lambda run: {"hooks": [Calls("after_run", interrupts)]}),
                ("Ctrl-C in the input", KeyboardInterrupt, lambda run: {"input_fn": run.input(at=5, do=interrupts)}),
            ],
        )
    },
    **{
        f"{verb}, {what}": (Mine, lambda run, verb=verb, args=args: list(getattr(run, verb)(*args)))
        for verb in ("train", "evaluate", "predict")
        for what, args in {"model_fn fails": (fails,), "init_fn fails": (counting_model_fn, fails)}.items()
    },
    "train, host_call fails": (Mine, lambda run: run.train(with_host_call(fails))),
    "train, Ctrl-C in host_call": (KeyboardInterrupt, lambda run: run.train(with_host_call(interrupts))),
    "train, a checkpoint fails": (OSError, a_checkpoint_fails),
    "train, a NaN loss": (js.hooks.NanLossDuringTrainingError, lambda run: run.train(input_fn=nan_input)),
    "train, claimed by another": (RuntimeError, a_claim_of_another),
    "evaluate, metric_fn fails": (Mine, lambda run: run.evaluate(with_metric_fn(fails))),
    "evaluate, host_call fails": (
        Mine,
        lambda run: run.train(with_host_call(lambda: None)).evaluate(run.input(), hooks=[Calls("after_run", fails)]),
    ),
    "predict, the caller fails": (Mine, lambda run: [fails() for _ in run.predict()]),
    "train and evaluate, an exporter fails": (Mine, lambda run: train_and_evaluate(run, exporters=FailingExporter())),
}


def what_is_open():
    """What this process has open, by kind and name; threads that wait in a pool of C++ are not among them."""
    gc.collect()
    files = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            name = os.readlink(f"/proc/self/fd/{descriptor}")
        except FileNotFoundError:  # that of the list itself
            continue
        files.append(re.sub(r":\[\d+\]", "", name))  # the number of a socket or a pipe
    return collections.Counter(
        [
            *(f"thread {thread.name}" for thread in threading.enumerate()),
            *(f"process {child.name()}" for child in psutil.Process().children()),
            *(f"temporary {name}" for name in os.listdir(tempfile.gettempdir())),
            *(f"open {name}" for name in files),
        ]
    )


def opened(before, after):
    """What is open in addition."""
    return list(after - before)


@pytest.fixture(scope="module")
def _used():
    """JAX and orbax have been used: their pools of threads live as long as the process."""
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        run = Run(pathlib.Path(directory), patch)
        run.train()
        run.evaluate()
        list(run.predict())


@pytest.fixture
def run(_used, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return Run(tmp_path, monkeypatch)


@pytest.mark.parametrize("name", ENDS_WELL)
def test_after_a_run(name, run):
    before = what_is_open()
    ENDS_WELL[name](run)
    assert opened(before, what_is_open()) == []


@pytest.mark.parametrize("name", ENDS_WITH_AN_ERROR)
def test_after_a_failure(name, run):
    kind, call = ENDS_WITH_AN_ERROR[name]
    before = what_is_open()
    with pytest.raises(kind):
        call(run)
    assert opened(before, what_is_open()) == []


def test_the_pools_of_jax_and_orbax_do_not_grow(tmp_path, monkeypatch):
    """Those of C++ have threads that only the kernel knows."""
    counts = []
    for i in range(6):
        (tmp_path / str(i)).mkdir()
        run = Run(tmp_path / str(i), monkeypatch)
        run.train().evaluate(run.input())
        list(run.predict())
        counts.append(len(os.listdir("/proc/self/task")))
    assert min(counts[3:]) <= max(counts[:3]), counts


def test_what_is_left_is_found(run, tmp_path):
    before = what_is_open()
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait, name="left-over")
    thread.start()
    with open(tmp_path / "a", "w"), tempfile.TemporaryDirectory(prefix="left-") as directory:
        found = opened(before, what_is_open())
    ended.set()
    thread.join()
    assert sorted(found) == [
        f"open {tmp_path}/a",
        f"temporary {os.path.basename(directory)}",
        "thread left-over",
    ]
