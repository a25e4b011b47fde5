"""save: a checkpoint of the state that a training would begin with."""

import contextlib

import jax

from jaxspec._src.base.callables import describe
from jaxspec._src.base.types import InputFn
from jaxspec._src.checkpoint.claim import claimed
from jaxspec._src.checkpoint.latest import checkpoint_path
from jaxspec._src.device.processes import Alone
from jaxspec._src.run.engine import Engine
from jaxspec._src.run.sources import Source
from jaxspec._src.spec.mode import ModeKeys
from jaxspec._src.step.init import noting_verb
from jaxspec._src.step.state import TrainState


def save(engine: Engine, input_fn: InputFn | None) -> str:
    """`TPUEstimator.save`."""
    if jax.process_count() > 1:
        raise RuntimeError(
            f"save writes with one process, and this is one of {jax.process_count()}. Call it in a program of its own, "
            "before the processes are started; or call train, which saves the fresh state before its first step."
        )
    with (
        engine.training("save"),
        claimed(engine.model_dir) as claim,
        contextlib.closing(engine.source(training=False)) as source,
    ):
        if source.path is not None:
            return source.path
        saver = engine.saver(engine.model_dir)
        saver.check_directory()
        state = _fresh_state(engine, source, input_fn) if source.live is None else source.live.state
        saver.begin(source.step, Alone(), claim)
        saver.save(state, source.position())
        saver.wait()
        engine.sources.expects_checkpoint = True
    return checkpoint_path(engine.model_dir, source.step)


def _fresh_state(engine: Engine, source: Source, input_fn: InputFn | None) -> TrainState:
    if input_fn is None:
        raise ValueError(
            "save: there are no variables yet, and init_fn makes them for a batch: write estimator.save(input_fn), "
            "with the input_fn of train."
        )
    with contextlib.closing(engine.open_input(input_fn, ModeKeys.TRAIN, limit=1)) as infeed:
        if infeed.first is None:
            raise ValueError(
                f"save: input_fn ({describe(input_fn)}) yielded no batch. The variables are made for its first one: "
                "input_fn must yield at least one."
            )
        with noting_verb("save"):
            initial = engine.initial_state
            variables = initial.variables(source, infeed)
            _, trace = engine.programs.training(infeed, variables, initial.rng, trace=True)
        return initial.for_training(source, variables, trace)
