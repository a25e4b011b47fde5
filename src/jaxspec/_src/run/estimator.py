"""TPUEstimator: the verbs."""

import contextlib
import functools
import logging
import os
import threading
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any, Self

import jax
import numpy as np

from jaxspec._src.base.callables import argument_names, check_arguments
from jaxspec._src.base.context import TPUContext
from jaxspec._src.base.hyperparameters import copy_params, with_values
from jaxspec._src.base.tensorflow_arguments import answers
from jaxspec._src.base.validate import check_positive_int
from jaxspec._src.checkpoint import directory, store
from jaxspec._src.checkpoint.saver import Saver
from jaxspec._src.data.input_source import InputMemory
from jaxspec._src.data.prefetch import Infeed
from jaxspec._src.device.devices import choose_devices, describe_devices
from jaxspec._src.device.gather import first_shard
from jaxspec._src.device.live_state import StateOwner
from jaxspec._src.hooks.checkpoint_saver import CheckpointSaverHook
from jaxspec._src.hooks.listener import CheckpointSaverListener, check_listeners
from jaxspec._src.run.config import RunConfig, TPUConfig
from jaxspec._src.run.hook_calls import HookCalls
from jaxspec._src.run.host_calls import on_host
from jaxspec._src.run.inference import InferenceRun, run_batches
from jaxspec._src.run.loop_length import LoopLength
from jaxspec._src.run.programs import Programs
from jaxspec._src.run.results import MetricsOfBatches, choose_keys, examples
from jaxspec._src.run.signals import StopRequest, doing, raise_if_interrupted, signals_put_off
from jaxspec._src.run.sources import Source, Sources
from jaxspec._src.run.train import TrainingRun
from jaxspec._src.run.training_clock import TrainingClock
from jaxspec._src.run.training_report import TrainingReport
from jaxspec._src.run.validate import (
    INPUT_FN_ARGUMENTS,
    check_last_step,
    check_params,
    check_steps,
    check_supported,
    choose_model_dir,
    no_batch_message,
)
from jaxspec._src.run.write_results import write_results
from jaxspec._src.spec.hook import SessionRunHook, check_hooks
from jaxspec._src.spec.mode import ModeKeys
from jaxspec._src.step.init import as_init_fn
from jaxspec._src.step.model import MODEL_FN_ARGUMENTS, Model
from jaxspec._src.step.state import TrainState
from jaxspec._src.summary.writer import SummaryWriter, create_file_writer

if TYPE_CHECKING:
    from jaxspec._src.run.progress import ProgressBar

_logger = logging.getLogger("jaxspec")


_ANY_DEVICE = "leave it out: the same program runs on whatever devices there are (use_tpu=False: on one CPU)."
_EXPORTS = "leave it out: exported functions are made for no device in particular."
_GONE = {
    "batch_axis": "leave it out, and let input_fn put examples along axis 0 of every array.",
    "eval_on_tpu": _ANY_DEVICE,
    "export_to_tpu": _EXPORTS,
    "export_to_cpu": _EXPORTS,
    "export_saved_model_api_version": _EXPORTS,
    "embedding_config_spec": "embed in model_fn: flax.linen.Embed, its table among the variables.",
}
"""What to write for arguments of TensorFlow's."""


class TPUEstimator:
    """Trains, evaluates and predicts with one pure model_fn, on whatever devices there are.

    Args:
      model_fn: a pure function, called by keyword with those of `features`, `labels`, `mode`, `params`, `config`,
        `variables`, `opt_state`, `step`, `rng` that it names; returns a `TPUEstimatorSpec` of one shard's batch. Its Python code
        runs when a program is compiled, not at each step.
      init_fn: makes the variables: a function of those of `rng`, `features`, `labels`, `params` that it names, or a
        Flax Linen Module.
      model_dir: where checkpoints and event files go; None: that of `config`, or a temporary directory.
      config: a `RunConfig`.
      params: hyper-parameters: a dict, a ConfigDict, a namespace, a dataclass or another object. model_fn, init_fn and
        input_fn get copies of the same type, with `batch_size` and `context` added as keys (or attributes, where it has
        no keys); these two names are reserved. What cannot be copied, such as a lock, is passed as it is.
      use_tpu: map over `config.tpu_config.num_shards` (None: all) of `jax.devices()`, whatever they are. False: one
        CPU device, one step a loop.
      train_batch_size, eval_batch_size, predict_batch_size: rows of a global batch; each is needed by its verb, with
        `use_tpu=False` by none (the input decides then).
      warm_start_from: not built yet; raises.

    Raises:
      ValueError, TypeError: by TPUEstimator's rules.
    """

    @answers(
        _GONE,
        write="Write TPUEstimator(model_fn, init_fn, model_dir=..., config=..., params=...).",
    )
    def __init__(
        self,
        model_fn: Callable[..., Any],
        init_fn: Any = None,
        *,
        model_dir: str | os.PathLike[str] | None = None,
        config: RunConfig | None = None,
        params: Any = None,
        use_tpu: bool = True,
        train_batch_size: int | None = None,
        eval_batch_size: int | None = None,
        predict_batch_size: int | None = None,
        warm_start_from: Any = None,
    ) -> None:
        config = RunConfig() if config is None else config
        if not isinstance(config, RunConfig):
            raise ValueError(f"`config` must be provided with type `jaxspec.RunConfig`, given: {config!r}")
        check_params(model_fn, params)
        self._model_dir = choose_model_dir(model_dir, config)
        self._config = config.replace(model_dir=self._model_dir)
        self._params = copy_params({} if params is None else params)
        self._user_model_fn = model_fn
        self._use_tpu = use_tpu
        if init_fn is not None:
            as_init_fn(init_fn)  # for its checks
        self._init_fn = init_fn
        check_arguments(model_fn, role="model_fn", allowed=MODEL_FN_ARGUMENTS, required=("features",))
        self._batch_sizes = {
            ModeKeys.TRAIN: train_batch_size,
            ModeKeys.EVAL: eval_batch_size,
            ModeKeys.PREDICT: predict_batch_size,
        }
        if use_tpu:
            for mode, size in self._batch_sizes.items():
                if size is not None:
                    check_positive_int(_BATCH_SIZE_NAMES[mode], size)
        if warm_start_from is not None:
            raise ValueError(
                f"warm_start_from must be a string or a WarmStartSettings, instead got {type(warm_start_from)}"
                if not isinstance(warm_start_from, str | os.PathLike)
                else "warm_start_from is not built yet; load weights in Scaffold(init_fn=...), which scaffold_fn returns."
            )
        check_supported(self._config)
        self._owner = StateOwner()
        self._input_memory = InputMemory()
        self._sources = Sources(self._model_dir, self._owner)
        self._savers: dict[str, Saver] = {}
        self._announced = False
        self._bar: ProgressBar | None = None
        self._clock = TrainingClock()
        """Of the training that is under way, or was the last one."""
        self._training = threading.Lock()

    # What it is made of.

    @property
    def model_dir(self) -> str:
        """Where checkpoints and event files go."""
        return self._model_dir

    @property
    def config(self) -> RunConfig:
        """The RunConfig, with `model_dir` filled in."""
        return self._config

    @property
    def params(self) -> Any:
        """A copy of the hyper-parameters."""
        return copy_params(self._params)

    @property
    def model_fn(self) -> Callable[..., Any]:
        """The user's model_fn with the hyper-parameters bound: a function of the other arguments it names."""
        names, takes_any = argument_names(self._user_model_fn)
        if takes_any or "params" in names:
            return functools.partial(self._user_model_fn, params=self.params)
        return self._user_model_fn

    def eval_dir(self, name: str | None = None) -> str:
        """The directory of the event files of evaluations: `eval`, or `eval_NAME`."""
        return os.path.join(self._model_dir, f"eval_{name}" if name else "eval")

    def latest_checkpoint(self) -> str | None:
        """The path of the latest checkpoint in model_dir, or None."""
        return directory.latest_checkpoint(self._model_dir)

    def get_variable_names(self) -> list[str]:
        """The names of all arrays of the trained state, sorted: `params/...`, `opt_state/...`, `global_step`."""
        with contextlib.closing(self._trained()) as source:
            return sorted(_arrays(source))

    def get_variable_value(self, name: str) -> np.ndarray:
        """One array of the trained state (the live one, or the latest checkpoint), by its name, on the host."""
        with contextlib.closing(self._trained()) as source:
            arrays = _arrays(source)
            if name not in arrays:
                raise ValueError(f"get_variable_value: {name!r} is not a variable; the names are {sorted(arrays)}.")
            return np.array(first_shard(arrays[name])) if source.path is None else store.read_array(source.path, name)

    def _trained(self) -> Source:
        """The live state, or the latest checkpoint."""
        source = self._source()
        if source.live is None and source.path is None:
            raise ValueError(f"Could not find trained model in model_dir: {self._model_dir}.")
        return source

    # The verbs.

    def train(
        self,
        input_fn: Callable[..., Any],
        hooks: Any = None,
        steps: int | None = None,
        max_steps: int | None = None,
        saving_listeners: Any = None,
        *,
        resume_input: bool | None = None,
    ) -> Self:
        """Trains from where the live state or the latest checkpoint stands.

        Args:
          input_fn: names any of `params`, `mode`, `config`; returns an iterable of batches of
            `params["batch_size"]` rows, or one batch. The end of the input ends training. All of it runs in one
            thread, in a copy of the caller's context. Input whose iterator has `get_state` and `set_state` (Grain,
            `numpy_input_fn`) goes on where the state left it, in this process or after a restart. An iterator that the
            caller made before and holds on to goes on where it stands, and is not closed. Any other input begins again
            at each call.
          hooks: `hooks.SessionRunHook`s. They are called after the checkpoint saver and before those of the spec. The
            hooks of a spec are made anew for each call: model_fn is traced again then, and nothing is compiled.
          steps: updates to make.
          max_steps: the global step to reach; if it is reached already, input_fn is not called.
          saving_listeners: `hooks.CheckpointSaverListener`s, called around every checkpoint.
          resume_input: whether the input goes on at the position that was saved with the state. None: if it is the
            input that the position came from, else it begins at its beginning, with a warning. It is recognised by the
            type of its iterator, the structure, dtypes and shapes of its batches (not the number of rows), and what
            the iterator's method `fingerprint` returns; where there is none, by the name of input_fn and the values of
            the arrays that are attributes of the iterator. A `set_state` that raises ValueError refuses a position,
            too. True: go on there, whatever the input is. False: begin.

        Returns:
          The estimator. A checkpoint of the last step is written, unless checkpoints are off.

        Raises:
          ValueError: for steps and max_steps both given, zero or negative; for a batch that does not fit.
          NanLossDuringTrainingError: if a loss is NaN, naming its step.
          Anything that input_fn, model_fn, host_call or a hook raises, as itself.
        """
        check_steps("Train", steps, max_steps)
        hooks, listeners = check_hooks(hooks), check_listeners(saving_listeners)
        self._checked_batch_size(ModeKeys.TRAIN)
        if not self._training.acquire(blocking=False):
            raise RuntimeError("train was called while this estimator is training.")
        try:
            with contextlib.closing(self._sources.current(training=False)) as source:
                if max_steps is not None and source.step >= max_steps:
                    _logger.warning(
                        "Skipping training since max_steps has already saved. max_steps=%d, and %s is at step %d: to train on, raise "
                        "max_steps or pass steps=; to begin anew, use another model_dir.",
                        *(max_steps, source.path or "the state in memory", source.step),
                    )
                    return self
                self._announce()
                stop = max_steps if steps is None else source.step + steps
                check_last_step(source.step, stop)
                # The first batch is fetched before signals are put off: until then there is nothing to save.
                with (
                    contextlib.closing(self._training_infeed(input_fn, source, stop, resume_input)) as infeed,
                    signals_put_off() as interrupt,
                ):
                    self._train(infeed, source, stop, interrupt, hooks, listeners)
        finally:
            self._training.release()
        return self

    def evaluate(
        self,
        input_fn: Callable[..., Any],
        steps: int | None = None,
        hooks: Any = None,
        checkpoint_path: str | None = None,
        name: str | None = None,
    ) -> dict[str, Any]:
        """Evaluates the live state, or a checkpoint, on every example of the input once.

        Args:
          input_fn: as in train; batches may be short.
          steps: batches to take at most; None: all.
          hooks: `hooks.SessionRunHook`s; one batch is one loop for them.
          checkpoint_path: None means the live state or the latest checkpoint, or fresh variables without one.
          name: of this evaluation, when there are several: its event files go to `eval_NAME`.

        Returns:
          The metrics by name, `loss` (the mean over examples) and `global_step`.
        """
        if steps is not None:
            check_steps("Eval", steps, None)
        if name is not None and not isinstance(name, str):
            raise TypeError(f"evaluate: name must be a string, got {name!r}.")
        hooks = check_hooks(hooks)
        self._checked_batch_size(ModeKeys.EVAL)
        self._announce()
        with (
            self._clock.stopped(),
            contextlib.closing(self._source(checkpoint_path)) as source,
            contextlib.closing(self._infeed(input_fn, ModeKeys.EVAL, limit=steps)) as infeed,
        ):
            if infeed.first is None:
                raise ValueError(no_batch_message(input_fn, "Evaluation"))
            writer = create_file_writer(self.eval_dir(name))
            writer.warn_if_unwritable()
            metrics = MetricsOfBatches(source.step, writer)
            with doing("evaluation"), contextlib.ExitStack() as stack:
                run = self._inference(stack, ModeKeys.EVAL, source, infeed, hooks, writer, steps)
                while run.next_batch(metrics.add) is not None:
                    pass
                run.end()
            results = metrics.compute()
            path = source.path or directory.checkpoint_path(self._model_dir, source.step)
            write_results(results, path, writer)
        return results

    def predict(
        self,
        input_fn: Callable[..., Any],
        predict_keys: Any = None,
        hooks: Any = None,
        checkpoint_path: str | None = None,
        yield_single_examples: bool = True,
    ) -> Iterator[Any]:
        """Yields predictions, in the order of the input: exactly as many as there are examples.

        The arguments are checked now; input_fn is called at the first `next`. The generator keeps what it needs:
        training may go on while it is open, and several may be used in turn.

        Args:
          input_fn: as in evaluate; labels are ignored.
          predict_keys: the keys of `predictions` to yield; unknown ones are ignored if one is known.
          hooks: as in evaluate. Closing the generator before its end leaves out their `end`.
          checkpoint_path: as in evaluate.
          yield_single_examples: False yields batches as they are.

        Returns:
          A generator of dicts `{key: array of one example}`, or of arrays where `predictions` is one array.
        """
        hooks = check_hooks(hooks)
        self._checked_batch_size(ModeKeys.PREDICT)
        check_arguments(input_fn, role="input_fn", allowed=INPUT_FN_ARGUMENTS)
        if checkpoint_path is not None:
            directory.checkpoint_step(checkpoint_path)
        return self._with_clock_stopped(
            self._predict(input_fn, predict_keys, hooks, checkpoint_path, yield_single_examples)
        )

    def _with_clock_stopped(self, predictions: Generator[Any, None, None]) -> Iterator[Any]:
        """The same items; no rate of training counts the time in which a hook waits for them."""
        ended = object()
        try:
            while True:
                with self._clock.stopped():
                    item = next(predictions, ended)
                if item is ended:
                    return
                yield item
        finally:
            with self._clock.stopped():
                predictions.close()

    def _predict(
        self, input_fn: Any, predict_keys: Any, hooks: tuple[SessionRunHook, ...], path: str | None, single: bool
    ) -> Generator[Any, None, None]:
        self._announce()
        with (
            contextlib.closing(self._source(path)) as source,
            contextlib.closing(self._infeed(input_fn, ModeKeys.PREDICT)) as infeed,
        ):
            if infeed.first is None:
                return
            with contextlib.ExitStack() as stack:
                run = self._inference(stack, ModeKeys.PREDICT, source, infeed, hooks)
                while (batch := run.next_batch(lambda *_: None)) is not None:
                    predictions = on_host(batch[0]).predictions
                    for example in examples(choose_keys(predictions, predict_keys), single, batch[1]):
                        raise_if_interrupted()
                        yield example
                run.end()

    def export_saved_model(
        self,
        export_dir_base: str,
        serving_input_receiver_fn: Callable[..., Any],
        assets_extra: Any = None,
        checkpoint_path: str | None = None,
    ) -> str:
        """Not built yet; raises NotImplementedError."""
        raise NotImplementedError(
            "export_saved_model is not built yet. Until then leave out BestExporter, LatestExporter and FinalExporter, or define "
            "export_saved_model in a class derived from TPUEstimator."
        )

    # Where the state comes from.

    def _source(self, path: str | os.PathLike[str] | None = None) -> Source:
        """What a verb other than train uses."""
        return self._sources.of_checkpoint(path) if path else self._sources.current(training=self._training.locked())

    def _announce(self) -> None:
        if not self._announced:
            _logger.info("Running on %s.", describe_devices(self._devices, use_tpu=self._use_tpu))
            self._announced = True

    @functools.cached_property
    def _devices(self) -> tuple[jax.Device, ...]:
        return choose_devices(use_tpu=self._use_tpu, num_shards=self._tpu_config.num_shards)

    @property
    def _tpu_config(self) -> TPUConfig:
        assert self._config.tpu_config is not None  # RunConfig fills it in
        return self._config.tpu_config

    @functools.cached_property
    def _model(self) -> Model:
        # Not in the constructor: it would ask for the devices, and a wrong argument should not wait for a TPU.
        context = TPUContext(len(self._devices), jax.process_count(), _host=None)
        params = with_values(self._params, use_tpu=self._use_tpu, context=context)
        return Model(self._user_model_fn, params, self._config)

    @functools.cached_property
    def _programs(self) -> Programs:
        seed = self._config.tf_random_seed or 0
        return Programs(self._model, self._init_fn, self._devices, seed=seed, loop_steps=self._loop_steps)

    @property
    def _loop_steps(self) -> int | None:
        """Steps a loop; None where it is a time."""
        steps: int | None = self._tpu_config.loop_steps if self._use_tpu else 1
        return steps

    # Input.

    def _checked_batch_size(self, mode: str) -> int | None:
        """The rows of a batch of this process."""
        size, name = self._batch_sizes[mode], _BATCH_SIZE_NAMES[mode]
        if not self._use_tpu:
            if size is not None:
                check_positive_int(name, size)
            return size
        if size is None:
            raise ValueError(
                f"`{name}` cannot be `None` if .{_VERBS[mode]} is called: pass {name}= to the TPUEstimator constructor, the rows "
                "of a batch over all shards."
            )
        if size % len(self._devices):
            raise ValueError(
                f"{name.split('_')[0]} batch size {size} must be divisible by number of replicas {len(self._devices)}. "
                f"Choose a multiple of {len(self._devices)}, or fewer shards with TPUConfig(num_shards=...)."
            )
        rows: int = int(size) // jax.process_count()
        return rows

    def _infeed(self, input_fn: Callable[..., Any], mode: str, *, limit: int | None = None, **training: Any) -> Infeed:
        check_arguments(input_fn, role="input_fn", allowed=INPUT_FN_ARGUMENTS)
        batch_size = self._checked_batch_size(mode)
        context = TPUContext(len(self._devices), jax.process_count(), jax.process_index())
        rows = {} if batch_size is None else {"batch_size": batch_size}
        params = with_values(self._params, context=context, **rows)
        return Infeed(
            input_fn,
            {"params": params, "mode": mode, "config": self._config},
            mode=mode,
            num_shards=len(self._devices) // jax.process_count(),
            batch_size=batch_size if self._use_tpu else None,
            ragged=mode != ModeKeys.TRAIN or not self._use_tpu,
            limit=limit,
            memory=self._input_memory,
            check_interrupt=raise_if_interrupted,
            **training,
        )

    def _training_infeed(
        self, input_fn: Callable[..., Any], source: Source, stop: int | None, resume: bool | None
    ) -> Infeed:
        if source.path is not None:
            position = store.read_position(source.path)
        else:
            # A state that was lost takes its position with it: a fresh one begins the input again.
            position = None if source.live is None else source.live.position
        infeed = self._infeed(
            input_fn,
            ModeKeys.TRAIN,
            limit=None if stop is None else stop - source.step,
            position=position,
            resume=resume,
            step=source.step,
            restarted=source.path is not None,
        )
        if infeed.first is None:
            infeed.close()
            raise ValueError(no_batch_message(input_fn, "Training"))
        return infeed

    # Training.

    def _train(
        self,
        infeed: Infeed,
        source: Source,
        stop: int | None,
        interrupt: StopRequest,
        hooks: tuple[SessionRunHook, ...],
        listeners: tuple[CheckpointSaverListener, ...],
    ) -> None:
        self._clock = TrainingClock()
        program, state = self._programs.training(infeed, source)
        hooks, checkpoint_dirs = self._with_saver((*hooks, *(program.spec.training_hooks or ())), listeners)
        calls = HookCalls(hooks, "in training")
        config = self._config
        with (
            _flushed(self._model_dir) as writer,
            calls.begun(),
            self._progress(ModeKeys.TRAIN, start=source.step, total=stop) as bar,
        ):
            if source.live is None:
                self._owner.put(state(), source.step, None if source.path is None else infeed.position)
            else:
                self._owner.reinstate(source.live)
            source.close()
            del state  # the owner alone keeps arrays alive
            infeed.start(program.capacity)
            writer.begin_run(source.step)
            for checkpoint_dir in {self._model_dir, *checkpoint_dirs}:
                self._saver(checkpoint_dir).begin(source.step if checkpoint_dir == self._model_dir else None)
            run = TrainingRun(
                owner=self._owner,
                loop=program.full,
                shard=program.spec,
                infeed=infeed,
                hooks=calls,
                step=source.step,
                stop_step=stop,
                clock=LoopLength(self._loop_steps, self._tpu_config.loop_seconds),
                savers={checkpoint_dir: self._saver(checkpoint_dir) for checkpoint_dir in checkpoint_dirs},
                host_call_every=self._tpu_config.experimental_host_call_every_n_steps,
                run_ahead=self._use_tpu,
                report=TrainingReport(
                    step=source.step,
                    writer=writer,
                    log_every=config.log_step_count_steps,
                    summary_every=config.save_summary_steps,
                    batch_size=self._batch_sizes[ModeKeys.TRAIN],
                    bar=bar,
                    clock=self._clock,
                ),
                writer=writer,
                interrupt=interrupt,
                fail_on_nan_loss=config.fail_on_nan_loss,
            )
            try:
                run.run()
                jax.effects_barrier()  # callbacks of model_fn belong to their steps
            finally:
                # Where none could be written, the state in memory is all there is.
                has_checkpoint = bool(directory.checkpoint_steps(self._model_dir))
                self._sources.expects_checkpoint = has_checkpoint and self._model_dir in checkpoint_dirs
        _logger.info("Loss for final step: %s.", run.loss)

    def _saver(self, checkpoint_dir: str) -> Saver:
        """The one saver of a directory."""
        if checkpoint_dir not in self._savers:
            self._savers[checkpoint_dir] = Saver(
                checkpoint_dir,
                keep_max=self._config.keep_checkpoint_max,
                keep_every_n_hours=self._config.keep_checkpoint_every_n_hours,
            )
        return self._savers[checkpoint_dir]

    def _with_saver(
        self, hooks: tuple[SessionRunHook, ...], listeners: tuple[CheckpointSaverListener, ...]
    ) -> tuple[tuple[SessionRunHook, ...], list[str]]:
        """(the hooks with a checkpoint saver, which goes first unless the user gave one; the directories it saves to)."""
        savers = [hook for hook in hooks if isinstance(hook, CheckpointSaverHook)]
        steps, secs = self._config.save_checkpoints_steps, self._config.save_checkpoints_secs
        if not savers and (steps or secs):
            savers = [CheckpointSaverHook(save_secs=secs or None, save_steps=steps or None)]
            hooks = (*savers, *hooks)
        if listeners and not savers:
            raise ValueError(
                "There should be a CheckpointSaverHook to use saving_listeners. Please set one of the "
                "RunConfig.save_checkpoints_steps or RunConfig.save_checkpoints_secs."
            )
        return hooks, [saver.start(self._model_dir, () if number else listeners) for number, saver in enumerate(savers)]

    # Evaluation and prediction.

    def _inference(
        self,
        stack: contextlib.ExitStack,
        mode: str,
        source: Source,
        infeed: Infeed,
        hooks: tuple[SessionRunHook, ...],
        writer: SummaryWriter | None = None,
        limit: int | None = None,
    ) -> InferenceRun:
        """A run; what it needs ends with `stack`. No generator: a StopIteration of a hook would become another error."""
        if source.live is None and source.path is None:
            _logger.warning(
                "Could not find trained model in model_dir: %s, running initialization. The results are those of fresh weights; "
                "check model_dir, or train first.",
                self._model_dir,
            )
        program, state = self._programs.inference(mode, infeed, source)
        assert program.tail is not None
        spec_hooks = program.spec.evaluation_hooks if mode == ModeKeys.EVAL else program.spec.prediction_hooks
        calls = HookCalls((*hooks, *(spec_hooks or ())), f"in {_SESSION_NAMES[mode]}")
        stack.enter_context(calls.begun())
        infeed.start(program.capacity)
        batches = run_batches(state, infeed, program.full, program.tail, program.capacity)
        stack.enter_context(contextlib.closing(batches))

        def lend() -> TrainState:
            if source.live is not None:
                source.live.keep()
            return state

        return InferenceRun(
            batches,
            hooks=calls,
            step=source.step,
            state=state,
            lend=lend,
            shard=program.spec,
            writer=writer,
            bar=stack.enter_context(self._progress(mode, start=0, total=limit)),
            limit=limit,
        )

    @contextlib.contextmanager
    def _progress(self, mode: str, *, start: int, total: int | None) -> Iterator["ProgressBar | None"]:
        """A progress bar, if there is to be one; that of a verb which is under way meanwhile is put aside."""
        from jaxspec._src.run.progress import open_progress  # it loads tqdm

        outer = self._bar
        if outer is not None:
            outer.pause()
        bar = self._bar = open_progress(
            _VERBS[mode],
            start=start,
            total=total,
            batch_size=self._batch_sizes[mode],
            enabled=self._config.progress_bar,
        )
        try:
            yield bar
        finally:
            if bar is not None:
                bar.close()
            self._bar = outer
            if outer is not None:
                outer.resume()


_VERBS = {ModeKeys.TRAIN: "train", ModeKeys.EVAL: "evaluate", ModeKeys.PREDICT: "predict"}
_SESSION_NAMES = {ModeKeys.EVAL: "evaluation", ModeKeys.PREDICT: "prediction"}
_BATCH_SIZE_NAMES = {
    ModeKeys.TRAIN: "train_batch_size",
    ModeKeys.EVAL: "eval_batch_size",
    ModeKeys.PREDICT: "predict_batch_size",
}


def _arrays(source: Source) -> dict[str, Any]:
    """The arrays of a trained state by name: those of the live state, or the shapes and dtypes in a checkpoint."""
    if source.path is not None:
        return store.array_names(source.path)
    assert source.live is not None
    return store.state_arrays(source.live.state)


@contextlib.contextmanager
def _flushed(logdir: str) -> Iterator[SummaryWriter]:
    """The writer of a directory, flushed on leaving."""
    writer = create_file_writer(logdir)
    try:
        yield writer
    finally:
        writer.flush()
