"""predict: a generator of predictions, exactly as many as there are examples."""

import contextlib
from collections.abc import Collection, Generator, Iterable, Mapping

import jax
import numpy as np

from jaxspec._src.base.types import InputFn, PyTree
from jaxspec._src.run.engine import Engine
from jaxspec._src.run.inference_run import InferenceRun
from jaxspec._src.spec.hook import SessionRunHook
from jaxspec._src.spec.mode import ModeKeys
from jaxspec._src.spec.tpu_estimator_spec import TPUEstimatorSpec, replaced


def predict(
    engine: Engine,
    input_fn: InputFn,
    predict_keys: str | Collection[str] | None,
    hooks: tuple[SessionRunHook, ...],
    checkpoint_path: str | None,
    single: bool,
) -> Generator[Iterable[PyTree], None, None]:
    """`TPUEstimator.predict`, with its arguments checked: for each batch what `examples` returns."""
    engine.announce()

    def chosen(spec: TPUEstimatorSpec) -> TPUEstimatorSpec:
        return replaced(spec, predictions=choose_keys(spec.predictions, predict_keys))

    with (
        contextlib.closing(engine.source(checkpoint_path)) as source,
        contextlib.closing(engine.open_input(input_fn, ModeKeys.PREDICT)) as infeed,
        contextlib.ExitStack() as stack,
    ):
        if infeed.first is None:
            return
        run = InferenceRun(stack, engine, ModeKeys.PREDICT, source, infeed, hooks, wanted=chosen)
        while (batch := run.next_batch()) is not None:
            yield examples(chosen(batch.spec).predictions, single, batch.rows)
        run.end()


def choose_keys(predictions: PyTree, keys: str | Collection[str] | None) -> PyTree:
    """The predictions under `keys` (None or empty: all); unknown keys are ignored if one is known, else ValueError."""
    if not keys:
        return predictions
    if not isinstance(predictions, Mapping):
        raise ValueError("predict_keys argument is not valid in case of non-dict predictions.")
    wanted = {keys} if isinstance(keys, str) else set(keys)
    chosen = {key: value for key, value in predictions.items() if key in wanted}
    if not chosen:
        raise ValueError(f"Expected to run at least one output from {list(predictions)}, provided {keys}.")
    return chosen


def examples(predictions: PyTree, single: bool, rows: int) -> Iterable[PyTree]:
    """The predictions of a batch of `rows` examples, one at a time or all at once; ValueError for other lengths.

    They are the caller's own, and may be written to.
    """
    predictions = jax.tree.map(np.array, predictions)
    if not single:
        return [predictions]
    is_dict = isinstance(predictions, Mapping)
    named = predictions if is_dict else {"predictions": predictions}
    sizes = {key: len(value) for key, value in named.items()}
    first, length = next(iter(sizes.items()))
    for key, size in sizes.items():
        if size != length:
            raise ValueError(
                f"Batch length of predictions should be same. {key} has different batch length than others: {sizes}. "
                "Give every prediction a leading batch axis, or use yield_single_examples=False."
            )
    if length != rows:
        name = f"predictions[{first!r}]" if is_dict else first
        raise ValueError(
            f"{name} has {length} entries for a batch of {rows} examples, over all shards; it must have one for each. "
            "Give it a leading batch axis (a scalar has one entry for each shard), or use yield_single_examples=False."
        )
    # Each value has `rows` entries. The loop over them is the cost of predict where a model is small.
    return (
        (dict(zip(named, row, strict=False)) for row in zip(*named.values(), strict=False)) if is_dict else predictions
    )
