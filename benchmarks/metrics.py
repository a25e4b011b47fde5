"""Host metrics against TensorFlow, metrax and scikit-learn: time and working memory, in one run.

    python benchmarks/metrics.py [--rounds 7]

Each library is timed once a round, one after the other, so that a change of the machine's speed meets all of
them; the ratios are medians over rounds of `other / jaxspec` in the same round. A time is one batch: update
and result together (for TensorFlow: `session.run` of the update, fed with the arrays, then of the value; the
graph is built before). A library that is not installed is named and left out. Memory is the peak that
tracemalloc sees beyond what stood before the call; it sees NumPy, and not the buffers of TensorFlow and JAX.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import statistics
import time
import tracemalloc
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxspec import metrics

Call = Callable[[], float]

EXAMPLES, BATCH, CLASSES, K = 1_000_000, 8_192, 1_000, 5
# What is promised, against TensorFlow's time and the batch's size.
LEAST_SPEEDUP, MOST_MEMORY = 5, 2


class Task(NamedTuple):
    """One metric at one size, as each library computes it; TensorFlow's makes its ops from placeholders."""

    title: str
    arrays: dict[str, np.ndarray]
    jaxspec: Call
    tensorflow: Callable[..., Any]
    metrax: Callable[[Any, Any], Call]  # of (metrax, jax.numpy): conversions that are not the metric happen outside
    scikit_learn: Callable[[Any], Call | None]  # of sklearn.metrics


def auc_task(rng: np.random.Generator) -> Task:
    labels = rng.integers(0, 2, EXAMPLES).astype(np.int32)
    predictions = np.clip(0.2 * labels + 0.8 * rng.random(EXAMPLES), 0, 1).astype(np.float32)
    return Task(
        f"auc, {EXAMPLES:,} examples, 200 thresholds",
        {"labels": labels, "predictions": predictions},
        lambda: metrics.auc(labels, predictions).compute(),
        lambda m, labels, predictions: m.auc(labels, predictions),
        lambda metrax, jnp: (
            lambda: float(
                metrax.AUCROC.from_model_output(
                    predictions=jnp.asarray(predictions), labels=jnp.asarray(labels)
                ).compute()
            )
        ),
        lambda sk: lambda: sk.roc_auc_score(labels, predictions),
    )


def accuracy_task(rng: np.random.Generator) -> Task:
    labels = rng.integers(0, CLASSES, BATCH).astype(np.int32)
    predictions = np.where(rng.random(BATCH) < 0.7, labels, rng.integers(0, CLASSES, BATCH)).astype(np.int32)
    return Task(
        f"accuracy, a batch of {BATCH:,}, {CLASSES:,} classes",
        {"labels": labels, "predictions": predictions},
        lambda: metrics.accuracy(labels, predictions).compute(),
        lambda m, labels, predictions: m.accuracy(labels, predictions),
        lambda metrax, jnp: (
            lambda: float(
                metrax.Accuracy.from_model_output(
                    predictions=jnp.asarray(predictions), labels=jnp.asarray(labels)
                ).compute()
            )
        ),
        lambda sk: lambda: sk.accuracy_score(labels, predictions),
    )


def precision_at_k_task(rng: np.random.Generator, trained: bool) -> Task:
    labels = rng.integers(0, CLASSES, BATCH).astype(np.int64)  # TensorFlow takes no other
    predictions = rng.normal(size=(BATCH, CLASSES)).astype(np.float32)
    if trained:  # most labels are among the best then, which takes other branches
        predictions[np.arange(BATCH), labels] += 4
    many_hot = np.zeros((BATCH, CLASSES), np.float32)
    many_hot[np.arange(BATCH), labels] = 1
    return Task(
        f"precision_at_k, k={K}, a batch of {BATCH:,}, {CLASSES:,} classes, "
        f"{'a trained' if trained else 'an untrained'} model",
        {"labels": labels, "predictions": predictions},
        lambda: metrics.precision_at_k(labels, predictions, K).compute(),
        lambda m, labels, predictions: m.precision_at_k(labels, predictions, K),
        lambda metrax, jnp: (
            lambda ks, hot: (
                lambda: float(
                    metrax.PrecisionAtK.from_model_output(
                        predictions=jnp.asarray(predictions), labels=hot, ks=ks
                    ).compute()[0]
                )
            )
        )(jnp.array([K]), jnp.asarray(many_hot)),
        # With one label a row top-k accuracy is k times precision at k.
        lambda sk: lambda: sk.top_k_accuracy_score(labels, predictions, k=K, labels=np.arange(CLASSES)) / K,
    )


def tensorflow_call(task: Task) -> Call:
    import tensorflow as tf

    v1 = tf.compat.v1
    graph = tf.Graph()
    with graph.as_default():
        placeholders = {k: v1.placeholder(a.dtype, [None, *a.shape[1:]]) for k, a in task.arrays.items()}
        value, update = task.tensorflow(v1.metrics, **placeholders)
        reset = v1.local_variables_initializer()
    session = v1.Session(graph=graph)
    feed = {placeholders[k]: a for k, a in task.arrays.items()}
    session.run(reset)

    def call() -> float:
        session.run(update, feed)
        return float(session.run(value))

    return call


def calls_of(task: Task, installed: dict[str, bool]) -> dict[str, Call]:
    calls: dict[str, Call] = {"jaxspec": task.jaxspec}
    if installed["tensorflow"]:
        calls["tensorflow"] = tensorflow_call(task)
    if installed["metrax"]:
        import jax.numpy as jnp
        import metrax

        calls["metrax"] = task.metrax(metrax, jnp)
    if installed["sklearn"]:
        import sklearn.metrics

        calls["scikit-learn"] = task.scikit_learn(sklearn.metrics)
    return calls


def seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peak_bytes(call: Call) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def report(task: Task, installed: dict[str, bool], rounds: int) -> None:
    calls = calls_of(task, installed)
    size = sum(a.nbytes for a in task.arrays.values())
    shapes = ", ".join(f"{k} {a.dtype}{list(a.shape)}" for k, a in task.arrays.items())
    print(f"\n{task.title}\n  batch: {shapes}, {size / 1e6:.2f} MB")
    values = {name: call() for name, call in calls.items()}  # compiles, too
    for call in calls.values():
        call()
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call))
    for name, call in calls.items():
        ratios = [other / ours for other, ours in zip(times[name], times["jaxspec"], strict=True)]
        ratio = statistics.median(ratios)
        line = f"  {name:13}{statistics.median(times[name]) * 1e3:10.3f} ms   value {values[name]:.5f}"
        if name != "jaxspec":
            line += f"   {ratio:8.1f} times jaxspec's time (rounds: {min(ratios):.1f} to {max(ratios):.1f})"
        if name == "tensorflow":
            line += f"   promised {LEAST_SPEEDUP}: {'kept' if ratio >= LEAST_SPEEDUP else 'MISSED'}"
        if name in ("jaxspec", "scikit-learn"):
            used = peak_bytes(call) / size
            line += f"   memory {used:.2f} times the batch"
            if name == "jaxspec":
                line += f"   promised at most {MOST_MEMORY}: {'kept' if used <= MOST_MEMORY else 'MISSED'}"
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    installed = {n: importlib.util.find_spec(n) is not None for n in ("tensorflow", "metrax", "sklearn")}
    missing = [name for name, there in installed.items() if not there]
    print(f"{platform.machine()}, {os.cpu_count()} cores, numpy {np.__version__}, {rounds} rounds")
    print(f"not installed, so not measured: {', '.join(missing) or 'none'}")
    rng = np.random.default_rng(0)
    for task in (
        auc_task(rng),
        accuracy_task(rng),
        precision_at_k_task(rng, trained=False),
        precision_at_k_task(rng, trained=True),
    ):
        report(task, installed, rounds)


if __name__ == "__main__":
    main()
