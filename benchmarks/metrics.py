"""Host metrics against TensorFlow, metrax and scikit-learn: time and working memory, in one run.

    python benchmarks/metrics.py [--quick] [--rounds 5]

A time is one batch: update and result together (for TensorFlow: `session.run` of the update, fed with the arrays, then
of the value; the graph is built before). auc has a million examples and 200 thresholds; the others a batch of 8,192
examples of 1,000 classes. Memory is the peak that tracemalloc sees beyond what stood before the call; it
sees NumPy, and not the buffers of TensorFlow and JAX.
"""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from harness import Benchmark, installed, seconds

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxspec import metrics

Call = Callable[[], float]

EXAMPLES, BATCH, CLASSES, K = 1_000_000, 8_192, 1_000, 5


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
        "auc",
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
        "accuracy",
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
        f"precision_at_k, {'a trained' if trained else 'an untrained'} model",
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


def calls_of(task: Task, libraries: set[str]) -> dict[str, Call]:
    calls: dict[str, Call] = {"jaxspec": task.jaxspec}
    if "tensorflow" in libraries:
        calls["tensorflow"] = tensorflow_call(task)
    if "metrax" in libraries:
        import jax.numpy as jnp
        import metrax

        calls["metrax"] = task.metrax(metrax, jnp)
    if "sklearn" in libraries:
        import sklearn.metrics

        calls["scikit-learn"] = task.scikit_learn(sklearn.metrics)
    return calls


def peak_bytes(call: Call) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def main() -> None:
    benchmark = Benchmark(__doc__, rounds=5)
    libraries = {name for name in ("tensorflow", "metrax", "sklearn") if installed(name)}
    rng = np.random.default_rng(0)
    tasks = [auc_task(rng), accuracy_task(rng), *(precision_at_k_task(rng, trained) for trained in (False, True))]
    memory: dict[str, list[float]] = {}
    for task in tasks:
        calls = calls_of(task, libraries)
        sides = {name: lambda call=call: 1e3 * seconds(call) for name, call in calls.items()}
        theirs = {name: [name] for name in calls if name != "jaxspec"}
        benchmark.compare(f"metrics: {task.title}", "ms", sides, ours=["jaxspec"], theirs=theirs, lower_is_better=True)
        size = sum(array.nbytes for array in task.arrays.values())
        memory[task.title] = [peak_bytes(calls["jaxspec"]) / size]
    benchmark.add("metrics: working memory", "times the batch", memory, lower_is_better=True)
    benchmark.save()


if __name__ == "__main__":
    main()
