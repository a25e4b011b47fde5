"""What the library is meant to reach on one CPU device of a quiet machine."""

_TRAINED = ("jaxspec, resident", "jaxspec, streamed")
KERAS, HAND, LIMIT, TENSORFLOW = "Keras, best setting", "hand-written loop", "lax.scan, the limit", "TPUEstimator"

_METRICS = ("auc", "accuracy", "precision_at_k, an untrained model", "precision_at_k, a trained model")

RATIOS: dict[tuple[str, str, str], float] = {
    **{("train, MLP", side, HAND): 1.3 for side in _TRAINED},
    ("train, MLP", "jaxspec, resident", LIMIT): 0.95,
    ("train, MLP", "jaxspec, streamed", LIMIT): 0.85,
    ("train, tiny", "jaxspec, resident", LIMIT): 0.6,
    ("train, tiny", "jaxspec, streamed", LIMIT): 0.3,
    **{(f"train, {name}", side, HAND): 0.99 for name in ("CNN", "transformer") for side in _TRAINED},
    **{(f"train, {name}", side, KERAS): 1.3 for name in ("MLP", "tiny", "CNN", "transformer") for side in _TRAINED},
    ("train beside TensorFlow, MLP", "jaxspec", TENSORFLOW): 3,
    **{
        (f"evaluate with {metric}, {name}", "jaxspec", KERAS): 1
        for metric in ("accuracy", "AUC")
        for name in ("MLP", "tiny")
    },
    **{(f"predict in batches, {name}", "jaxspec", KERAS): 1 for name in ("MLP", "tiny")},
    **{(f"predict one by one, {name}", "jaxspec", HAND): 0.9 for name in ("MLP", "tiny")},
    **{
        (f"calls of an export, {name}, batch 256", "export.load", "jax.jit, the limit"): 0.9
        for name in ("MLP", "transformer")
    },
    ("numpy_input_fn, shuffled", "numpy_input_fn @ 10000000", "numpy_input_fn @ 10000"): 1 / 1.5,
    **{(f"metrics: {name}", "jaxspec", "tensorflow"): 5 for name in _METRICS},
}
"""At least so many times as fast: by group, our side, and what it is compared with."""

FIGURES: dict[tuple[str, str], float] = {
    ("a second call on one batch", "jaxspec, evaluate"): 5,
    ("a second call on one batch", "jaxspec, predict"): 5,
    ("memory after 100,000 steps", "jaxspec, resident"): 1,
    ("memory after 100,000 steps", "jaxspec, streamed"): 1,
    **{("metrics: working memory", name): 2 for name in _METRICS},
}
"""At most so much, in the unit of the group: by group and side."""
