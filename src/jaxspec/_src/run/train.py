"""train: from the state that a run starts with to its last checkpoint."""

import contextlib
import logging

import jax

from jaxspec._src.base.arrays import describe_array, named_leaves
from jaxspec._src.base.types import InputFn
from jaxspec._src.checkpoint import latest
from jaxspec._src.checkpoint.claim import Claim, claimed
from jaxspec._src.data.prefetch import Infeed
from jaxspec._src.device.processes import Exchange
from jaxspec._src.hooks.checkpoint_saver import CheckpointSaverHook, CheckpointSaverListener
from jaxspec._src.run.config import RunConfig
from jaxspec._src.run.engine import Engine
from jaxspec._src.run.goodput import Goodput
from jaxspec._src.run.hook_calls import HookCalls
from jaxspec._src.run.host_calls import HostCalls
from jaxspec._src.run.in_flight import InFlight
from jaxspec._src.run.restarts import with_restarts
from jaxspec._src.run.signals import StopRequest, signals_put_off
from jaxspec._src.run.sources import Source
from jaxspec._src.run.summaries import run_writer
from jaxspec._src.run.training_clock import TrainingClock
from jaxspec._src.run.training_loops import TrainingLoops
from jaxspec._src.run.training_report import TrainingReport
from jaxspec._src.run.validate import check_last_step, no_batch_message
from jaxspec._src.run.watchdog import watched
from jaxspec._src.spec.hook import SessionRunHook
from jaxspec._src.spec.mode import ModeKeys
from jaxspec._src.step.init import noting_verb

_logger = logging.getLogger("jaxspec")

Hooks = tuple[SessionRunHook, ...]
Listeners = tuple[CheckpointSaverListener, ...]


def train(
    engine: Engine,
    input_fn: InputFn,
    hooks: Hooks,
    steps: int | None,
    max_steps: int | None,
    listeners: Listeners,
    resume_input: bool | None,
) -> None:
    """`TPUEstimator.train`, with its arguments checked."""
    stop, interrupt = max_steps, StopRequest()

    def run() -> None:
        nonlocal stop, interrupt
        goodput.starts_up()
        with (
            engine.exchange(ModeKeys.TRAIN) as exchange,
            claimed(engine.model_dir) if exchange.is_first else contextlib.nullcontext() as claim,
            contextlib.closing(engine.agreed_source(exchange, engine.source(training=False))) as source,
        ):
            if stop is not None and source.step >= stop:
                _logger.warning(
                    "Skipping training since max_steps has already saved. max_steps=%d, and %s is at step %d: to train "
                    "on, raise max_steps or pass steps=; to begin anew, use another model_dir.",
                    *(stop, source.path or "the state in memory", source.step),
                )
                return
            engine.announce()
            if exchange.is_first and _saves_to_model_dir(engine.config):
                engine.saver(engine.model_dir).check_directory()
            if steps is not None and stop is None:  # after a restart, the end stays what it was
                stop = source.step + steps
            check_last_step(source.step, stop)
            exchange.compare({**engine.fingerprint(ModeKeys.TRAIN), "the last step": stop})
            limit = None if stop is None else stop - source.step
            # The first batch is fetched before signals are put off: until then there is nothing to save.
            with contextlib.closing(
                engine.open_input(input_fn, ModeKeys.TRAIN, limit=limit, resume=resume_input, source=source)
            ) as infeed:
                if infeed.first is None:
                    raise ValueError(no_batch_message(input_fn, "Training"))
                with signals_put_off() as interrupt:
                    _train_on(engine, exchange, claim, infeed, source, stop, interrupt, hooks, listeners, goodput)

    def start_over() -> None:
        engine.live_state.discard()
        if not latest.checkpoint_steps(engine.model_dir):
            _logger.warning("There is no checkpoint in %s: training begins anew with fresh weights.", engine.model_dir)

    with engine.training(), watched("training", engine.config.stall_timeout_secs):
        engine.clock = TrainingClock()
        goodput = Goodput(engine.clock)
        with goodput.measured():
            with_restarts(engine.config.max_restarts, run, start_over, ends=lambda: interrupt.signum is not None)


def _train_on(
    engine: Engine,
    exchange: Exchange,
    claim: Claim | None,
    infeed: Infeed,
    source: Source,
    stop: int | None,
    interrupt: StopRequest,
    hooks: Hooks,
    listeners: Listeners,
    goodput: Goodput,
) -> None:
    """Trains on the batches of `infeed` from `source` to the global step `stop`."""
    with noting_verb("train"):
        variables = engine.initial_state.variables(source, infeed)
        programs, trace = engine.programs.training(
            infeed, variables, engine.initial_state.rng, trace=source.live is None
        )
    if exchange.count > 1:
        of_model = {f"the variable {name}": describe_array(leaf) for name, leaf in named_leaves(variables).items()}
        exchange.compare({**of_model, "model_fn (a hash of what it computes)": programs.fingerprint})
    hooks, checkpoint_dirs = _with_saver(engine, (*hooks, *(programs.spec.training_hooks or ())), listeners)
    for checkpoint_dir in checkpoint_dirs if exchange.is_first else ():
        if checkpoint_dir != engine.model_dir or not _saves_to_model_dir(engine.config):  # else it was checked before
            engine.saver(checkpoint_dir).check_directory()
    with (
        run_writer(engine.config, engine.model_dir) as writer,
        HookCalls(hooks, "in training") as calls,
        engine.progress(ModeKeys.TRAIN, start=source.step, total=stop) as bar,
    ):
        exchange.gather("start", None)  # all come to what the devices do together, or none
        state = engine.initial_state.for_training(source, variables, trace)
        if source.live is None:
            position = None if source.path is None else infeed.position
            engine.live_state.put(state, source.step, lambda: position)
        else:
            engine.live_state.reinstate(source.live)
        source.close()
        del state, variables, trace  # only the live state keeps arrays alive
        infeed.start(programs.capacity, programs.most_steps)
        writer.begin_run(source.step)
        for checkpoint_dir in {engine.model_dir, *checkpoint_dirs}:
            step, its_claim = (source.step, claim) if checkpoint_dir == engine.model_dir else (None, None)
            engine.saver(checkpoint_dir).begin(step, exchange, its_claim)
        report = TrainingReport(
            step=source.step,
            writer=writer,
            config=engine.config,
            batch_size=engine.batch_sizes[ModeKeys.TRAIN],
            bar=bar,
            clock=engine.clock,
            logs=exchange.is_first,
            compute=programs.full,
            goodput=goodput,
        )
        host_calls = HostCalls(engine, programs.spec, report, writer, interrupt, here=exchange.is_first)
        in_flight = InFlight(engine, host_calls, report, source.step)
        loops = TrainingLoops(
            engine, exchange, programs, in_flight, infeed, calls, source.step, stop, checkpoint_dirs, interrupt, writer
        )
        goodput.starts_loops(writer if engine.config.save_summary_steps else None)
        try:
            loops.train()
            jax.effects_barrier()  # callbacks of model_fn belong to their steps
            exchange.gather("end", None)
            jax.block_until_ready(engine.live_state.state)
            infeed.keep_memory()
        finally:
            # Where none could be written, the state in memory is all there is.
            has_checkpoint = bool(latest.checkpoint_steps(engine.model_dir))
            engine.sources.expects_checkpoint = has_checkpoint and engine.model_dir in checkpoint_dirs
    if exchange.is_first:
        _logger.info("Loss for final step: %s.", in_flight.loss)
        _logger.info("Training took %s.", goodput.describe())


def _saves_to_model_dir(config: RunConfig) -> bool:
    """Whether training saves without a hook of the user's that does."""
    return bool(config.save_checkpoints_steps or config.save_checkpoints_secs)


def _with_saver(engine: Engine, hooks: Hooks, listeners: Listeners) -> tuple[Hooks, list[str]]:
    """(the hooks with a checkpoint saver, which goes first unless the user gave one; the directories it saves to)."""
    directories: list[str] = []
    for hook in hooks:
        directory = hook.start_saving(engine.model_dir, () if directories else listeners)
        if directory is not None:
            directories.append(directory)
    steps, secs = engine.config.save_checkpoints_steps, engine.config.save_checkpoints_secs
    if not directories and _saves_to_model_dir(engine.config):
        saver = CheckpointSaverHook(save_secs=secs or None, save_steps=steps or None)
        return (saver, *hooks), [saver.start_saving(engine.model_dir, listeners)]
    if listeners and not directories:
        raise ValueError(
            "There should be a CheckpointSaverHook to use saving_listeners. Please set one of the "
            "RunConfig.save_checkpoints_steps or RunConfig.save_checkpoints_secs."
        )
    return hooks, directories
