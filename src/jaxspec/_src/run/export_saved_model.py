"""export_saved_model: the weights of a state, and model_fn in PREDICT, as an export."""

import contextlib
import os
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import jax

from jaxspec._src.base.callables import describe
from jaxspec._src.base.paths import absolute_path
from jaxspec._src.base.types import Batch
from jaxspec._src.base.validate import check_arguments
from jaxspec._src.device.shards import first_shard
from jaxspec._src.export.directory import check_assets, check_base
from jaxspec._src.export.exported_model import ExportedModel
from jaxspec._src.export.platforms import check_platforms
from jaxspec._src.export.receiver import ServingInputReceiver
from jaxspec._src.export.sample_run import noted_sample, sample
from jaxspec._src.export.saved_model import check_batch_sizes, write_saved_model
from jaxspec._src.run.engine import Engine
from jaxspec._src.spec.mode import ModeKeys
from jaxspec._src.step.inference_step import placed_step
from jaxspec._src.step.tracing import trace_spec

_WRITE = "Write export.build_raw_serving_input_receiver_fn({'x': export.TensorSpec((None, 28, 28), jnp.float32)})."


class _Sample(NamedTuple):
    """Features that a receiver makes, in place of those of an input."""

    features: Batch

    def first_shard(self) -> tuple[Batch, Batch]:
        return self.features, None


def export_saved_model(
    engine: Engine,
    export_dir_base: str | os.PathLike[str],
    serving_input_receiver_fn: Callable[[], ServingInputReceiver] | None,
    assets_extra: Mapping[str, str] | None,
    checkpoint_path: str | None,
    *,
    platforms: Collection[str],
    batch_sizes: Collection[int] | None,
) -> str:
    """`TPUEstimator.export_saved_model`."""
    base, receiver = absolute_path(export_dir_base), _receiver(serving_input_receiver_fn)
    platforms, sizes, assets = check_platforms(platforms), check_batch_sizes(batch_sizes), check_assets(assets_extra)
    check_base(base)
    source = engine.source(checkpoint_path)
    # A program is traced also where a breakpoint is to see values.
    with contextlib.closing(source), jax.transfer_guard("allow"), jax.disable_jit(False):
        if source.fresh and engine.warm_start is None:
            raise ValueError(
                f"Couldn't find trained model at {engine.model_dir}. Train first, or name a checkpoint: "
                "export_saved_model(..., checkpoint_path=...)."
            )
        inputs = sample(receiver.specs(), sizes[0])
        with noted_sample("the features of the receiver", inputs):
            features = jax.jit(receiver.features_of)(inputs)
        state = engine.initial_state.for_inference(source, _Sample(features))
        if source.fresh:
            spec, _ = trace_spec(placed_step(ModeKeys.PREDICT, engine.model), state, features, None)
            state = engine.initial_state.finish_fresh(state, spec)
        return write_saved_model(
            base,
            ExportedModel(engine.model, first_shard(state), receiver),
            platforms=platforms,
            batch_sizes=sizes,
            assets=assets,
            checkpoint=source.path or ("the warm start" if source.fresh else "the state in memory"),
        )


def _receiver(serving_input_receiver_fn: Callable[[], ServingInputReceiver] | None) -> ServingInputReceiver:
    if serving_input_receiver_fn is None:
        raise ValueError(f"An input_receiver_fn must be defined. {_WRITE}")
    check_arguments(serving_input_receiver_fn, role="serving_input_receiver_fn", allowed=(), instead=_WRITE)
    receiver = serving_input_receiver_fn()
    if not isinstance(receiver, ServingInputReceiver):
        raise TypeError(
            f"serving_input_receiver_fn ({describe(serving_input_receiver_fn)}) must return an "
            f"export.ServingInputReceiver, got {receiver!r}. {_WRITE}"
        )
    return receiver
