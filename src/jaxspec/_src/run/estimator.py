"""TPUEstimator: checks the arguments of its verbs, and calls them."""

import contextlib
import functools
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Self

import numpy as np

from jaxspec._src.base.callables import argument_names
from jaxspec._src.base.hyperparameters import copy_params
from jaxspec._src.base.paths import join
from jaxspec._src.base.removed_arguments import handle_removed_arguments
from jaxspec._src.base.types import AnyFunction, HyperParameters, InputFn, Metrics, PyTree
from jaxspec._src.base.validate import check_arguments
from jaxspec._src.checkpoint import latest, named_arrays
from jaxspec._src.device.shards import first_shard
from jaxspec._src.export.receiver import ServingInputReceiver
from jaxspec._src.hooks.checkpoint_saver import CheckpointSaverListener, check_listeners
from jaxspec._src.run.config import RunConfig
from jaxspec._src.run.engine import Engine
from jaxspec._src.run.evaluate import evaluate
from jaxspec._src.run.export_saved_model import export_saved_model
from jaxspec._src.run.predict import predict
from jaxspec._src.run.save import save
from jaxspec._src.run.train import train
from jaxspec._src.run.validate import check_input_fn, check_params, check_steps, check_supported, choose_model_dir
from jaxspec._src.run.warm_start import as_warm_start
from jaxspec._src.run.warm_start_settings import WarmStartReport, WarmStartSettings
from jaxspec._src.spec.hook import SessionRunHook, check_hooks
from jaxspec._src.spec.mode import ModeKeys
from jaxspec._src.spec.tpu_estimator_spec import ModelFn
from jaxspec._src.step.init import InitFn, as_init_fn
from jaxspec._src.step.model import MODEL_FN_ARGUMENTS


class TPUEstimator:
    """Trains, evaluates and predicts with one pure model_fn, on whatever devices there are.

    Args:
      model_fn: a pure function, called by keyword with those of `features`, `labels`, `mode`, `params`, `config`,
        `variables`, `opt_state`, `step`, `rng` that it names; returns a `TPUEstimatorSpec` of one shard's batch. Its
        Python code runs when a program is compiled, not at each step.
      init_fn: makes the variables: a function of those of `rng`, `features`, `labels`, `params` that it names, or a
        Flax Linen Module.
      model_dir: where checkpoints and event files go; None: that of `config`, or a temporary directory.
      config: a `RunConfig`.
      params: hyper-parameters: a dict, a ConfigDict, a namespace, a dataclass or another object. model_fn, init_fn and
        input_fn get copies of the same type, with `batch_size` and `context` added as keys (or attributes, where it has
        no keys); these two names are reserved. What cannot be copied, such as a lock, is passed as it is.
      use_tpu: True maps over `config.tpu_config.num_shards` (None: all) of `jax.devices()`, of any platform. False: one
        CPU device, one step a loop.
      train_batch_size, eval_batch_size, predict_batch_size: rows of a global batch; each is needed by its verb, with
        `use_tpu=False` by none (the input decides then).
      warm_start_from: what fresh variables start with, in train, evaluate and predict, as long as model_dir has no
        checkpoint: the path of a checkpoint, also of TensorFlow, of a model_dir, an export or a `.safetensors` file;
        or `WarmStartSettings`. A path takes all that is trained (the collection `params`). The optimizer's state and
        the step are not taken. `Scaffold.init_fn` sees the result.

    Raises:
      ValueError, TypeError: by TPUEstimator's rules.
    """

    @handle_removed_arguments
    def __init__(
        self,
        model_fn: ModelFn,
        init_fn: InitFn | None = None,
        *,
        model_dir: str | os.PathLike[str] | None = None,
        config: RunConfig | None = None,
        params: HyperParameters = None,
        use_tpu: bool = True,
        train_batch_size: int | None = None,
        eval_batch_size: int | None = None,
        predict_batch_size: int | None = None,
        warm_start_from: str | os.PathLike[str] | WarmStartSettings | None = None,
    ) -> None:
        config = RunConfig() if config is None else config
        if not isinstance(config, RunConfig):
            raise ValueError(f"`config` must be provided with type `jaxspec.RunConfig`, given: {config!r}")
        check_params(model_fn, params)
        config = config.replace(model_dir=choose_model_dir(model_dir, config))
        params = copy_params({} if params is None else params)
        if init_fn is not None:
            as_init_fn(init_fn)  # for its checks
        warm_start = as_warm_start(warm_start_from)
        check_arguments(model_fn, role="model_fn", allowed=MODEL_FN_ARGUMENTS, required=("features",))
        self._engine = Engine(
            model_fn,
            init_fn,
            params,
            config,
            use_tpu=use_tpu,
            batch_sizes={
                ModeKeys.TRAIN: train_batch_size,
                ModeKeys.EVAL: eval_batch_size,
                ModeKeys.PREDICT: predict_batch_size,
            },
            warm_start=warm_start,
        )
        check_supported(config)

    # What it is made of.

    @property
    def model_dir(self) -> str:
        """Where checkpoints and event files go."""
        return self._engine.model_dir

    @property
    def config(self) -> RunConfig:
        """The RunConfig, with `model_dir` filled in."""
        return self._engine.config

    @property
    def params(self) -> HyperParameters:
        """A copy of the hyper-parameters."""
        return copy_params(self._engine.params)

    @property
    def model_fn(self) -> AnyFunction:
        """The user's model_fn with the hyper-parameters bound: a function of the other arguments it names."""
        model_fn = self._engine.model_fn
        names, takes_any = argument_names(model_fn)
        return functools.partial(model_fn, params=self.params) if takes_any or "params" in names else model_fn

    def eval_dir(self, name: str | None = None) -> str:
        """The directory of the event files of evaluations: `eval`, or `eval_NAME`."""
        return join(self.model_dir, f"eval_{name}" if name else "eval")

    def latest_checkpoint(self) -> str | None:
        """The path of the latest checkpoint in model_dir, or None."""
        return latest.latest_checkpoint(self.model_dir)

    @property
    def warm_start_report(self) -> WarmStartReport | None:
        """What the last warm start took from where, and what not; None before it, or without one."""
        return None if self._engine.warm_start is None else self._engine.warm_start.report

    def get_variable_names(self) -> list[str]:
        """The names of all arrays of the trained state, sorted: `params/...`, `opt_state/...`, `global_step`."""
        with self._trained_arrays() as readers:
            return sorted(readers)

    def get_variable_value(self, name: str) -> np.ndarray:
        """One array of the trained state (the live one, or the latest checkpoint), by its name, on the host."""
        with self._trained_arrays() as readers:
            if name not in readers:
                raise ValueError(f"get_variable_value: {name!r} is not a variable; the names are {sorted(readers)}.")
            return readers[name]()

    def variables(self) -> dict[str, PyTree]:
        """The trained variables (the live ones, or those of the latest checkpoint), on the host.

        Returns:
          Nested dicts of NumPy arrays: `{"params": {"Dense_0": {"kernel": ...}}, ...}`. Random keys are their data.
        """
        with contextlib.closing(self._engine.source()) as source:
            if source.live is not None:
                return named_arrays.host_variables(first_shard(source.live.state.variables))
            if source.path is not None:
                return named_arrays.load_variables(source.path)
        raise self._no_trained_model()

    def save(self, input_fn: InputFn | None = None) -> str:
        """Writes a checkpoint without training: of fresh variables, at step 0, or of the state in memory.

        Where model_dir has a checkpoint of the state already, nothing is written.

        Args:
          input_fn: as in `train`. Its first batch goes to init_fn and model_fn, if there are no variables yet.

        Returns:
          The path of the checkpoint. `train`, `evaluate` and `predict` go on from it.

        Raises:
          ValueError: if there are no variables yet, and no input_fn.
          NanLossDuringTrainingError: if a weight is not finite.
          OSError: if model_dir cannot be written to.
          RuntimeError: while this estimator, or another program with this model_dir, trains; if there are several
            processes.
        """
        return save(self._engine, input_fn)

    @contextlib.contextmanager
    def _trained_arrays(self) -> Iterator[dict[str, Callable[[], np.ndarray]]]:
        """Functions that read the arrays of the live state, or of the latest checkpoint, by name."""
        with contextlib.closing(self._engine.source()) as source:
            if source.live is not None:
                arrays = named_arrays.state_arrays(source.live.state)
                yield {name: functools.partial(np.array, first_shard(array)) for name, array in arrays.items()}
            elif source.path is not None:
                names = named_arrays.array_names(source.path)
                yield {name: functools.partial(named_arrays.read_array, source.path, name) for name in names}
            else:
                raise self._no_trained_model()

    def _no_trained_model(self) -> ValueError:
        return ValueError(
            f"Could not find trained model in model_dir: {self.model_dir}. Train first; or write a checkpoint of fresh "
            "variables, with estimator.save(input_fn)."
        )

    # The verbs.

    def train(
        self,
        input_fn: InputFn,
        hooks: Iterable[SessionRunHook] | None = None,
        steps: int | None = None,
        max_steps: int | None = None,
        saving_listeners: Iterable[CheckpointSaverListener] | None = None,
        *,
        resume_input: bool | None = None,
    ) -> Self:
        """Trains, from the live state or from the latest checkpoint.

        Args:
          input_fn: names any of `params`, `mode`, `config`; returns an iterable of batches of
            `params["batch_size"]` rows, or one batch. The end of the input ends training. The input runs in one thread,
            in a copy of the caller's context. If its iterator has `get_state` and `set_state` (Grain,
            `numpy_input_fn`), it continues at the position that belongs to the state, in this process or after a
            restart. An iterator that the caller has made and still holds continues at its own position, and is not
            closed. Any other input starts from its beginning at each call.
          hooks: `hooks.SessionRunHook`s. They are called after the checkpoint saver and before those of the spec. The
            hooks of a spec are made anew for each call: model_fn is traced again then, and nothing is compiled.
          steps: updates to make.
          max_steps: the global step to reach; if it is reached already, input_fn is not called.
          saving_listeners: `hooks.CheckpointSaverListener`s, called around every checkpoint.
          resume_input: whether the input continues at the position that was saved with the state. True: always. False:
            never. None: only if it is the input that the position came from; otherwise it starts from its beginning,
            with a warning. The input is recognised by the type of its iterator, by the structure, dtypes and shapes of
            its batches (not the number of rows), and by what the iterator's method `fingerprint` returns; without that
            method, by the name of input_fn and the values of the arrays that are attributes of the iterator. A
            `set_state` that raises ValueError refuses the position.

        Returns:
          The estimator. A checkpoint of the last step is written, unless checkpoints are off.

        Raises:
          ValueError: for steps and max_steps both given, zero or negative; for a batch that does not fit.
          NanLossDuringTrainingError: if a loss is NaN, naming its step.
          Anything that input_fn, model_fn, host_call or a hook raises, as itself.
        """
        check_steps("Train", steps, max_steps)
        checked, listeners = check_hooks(hooks), check_listeners(saving_listeners)
        self._engine.batch_size(ModeKeys.TRAIN)  # for its checks
        train(self._engine, input_fn, checked, steps, max_steps, listeners, resume_input)
        return self

    def evaluate(
        self,
        input_fn: InputFn,
        steps: int | None = None,
        hooks: Iterable[SessionRunHook] | None = None,
        checkpoint_path: str | None = None,
        name: str | None = None,
    ) -> Metrics:
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
        checked = check_hooks(hooks)
        self._engine.batch_size(ModeKeys.EVAL)  # for its checks
        return evaluate(self._engine, input_fn, steps, checked, checkpoint_path, self.eval_dir(name))

    def predict(
        self,
        input_fn: InputFn,
        predict_keys: str | Collection[str] | None = None,
        hooks: Iterable[SessionRunHook] | None = None,
        checkpoint_path: str | None = None,
        yield_single_examples: bool = True,
    ) -> Iterator[PyTree]:
        """Yields predictions, in the order of the input: exactly as many as there are examples.

        The arguments are checked now; input_fn is called at the first `next`. The generator holds a lease
        on its state: training may continue while it is open, and several generators may be used in turn.

        Args:
          input_fn: as in evaluate; labels are ignored.
          predict_keys: the keys of `predictions` to yield; unknown ones are ignored if one is known. Without hooks the
            others are not copied to the host.
          hooks: as in evaluate. Closing the generator before its end leaves out their `end`.
          checkpoint_path: as in evaluate.
          yield_single_examples: False yields batches as they are.

        Returns:
          A generator of dicts `{key: array of one example}`, or of arrays where `predictions` is one array.
        """
        checked = check_hooks(hooks)
        self._engine.batch_size(ModeKeys.PREDICT)  # for its checks
        check_input_fn(input_fn)
        if checkpoint_path is not None:
            latest.checkpoint_step(checkpoint_path)
        examples = predict(self._engine, input_fn, predict_keys, checked, checkpoint_path, yield_single_examples)
        return self._engine.clock_stopped(examples)

    def export_saved_model(
        self,
        export_dir_base: str | os.PathLike[str],
        serving_input_receiver_fn: Callable[[], ServingInputReceiver] | None,
        assets_extra: Mapping[str, str] | None = None,
        checkpoint_path: str | None = None,
        *,
        platforms: Collection[str] = ("cpu", "cuda", "tpu"),
        batch_sizes: Collection[int] | None = None,
    ) -> str:
        """Writes the model in PREDICT, with its weights, into a new directory. `export.load` runs it without model_fn.

        The directory appears as a whole or not at all. It holds a program of `jax.export` for each signature of
        `export_outputs`, for one shard's batch; `weights.safetensors`; `signature.json`, which describes them; and
        `assets.extra`. Each program is compared with model_fn on a sample before anything is written. With several
        processes, call it in one of them.

        Args:
          export_dir_base: where the directory is made, local or in a bucket. It is named by the time in seconds, in 10
            digits; the newest export has the greatest name.
          serving_input_receiver_fn: without arguments; returns an `export.ServingInputReceiver`.
          assets_extra: files to copy, by their names in `assets.extra`.
          checkpoint_path: None means the live state, or the latest checkpoint, or the warm start.
          platforms: on which the export runs: of `cpu`, `cuda`, `rocm`, `tpu`.
          batch_sizes: the only sizes that the export takes, each with a program of its own; None: one program for all.
            This is for a model_fn that needs the batch size as a number.

        Returns:
          The path of the directory.

        Raises:
          ValueError: if there is no trained model; for a receiver, names or platforms that do not fit; if model_fn has
            no form for a batch of any size, naming the line; if a program differs from model_fn.
          OSError: if the directory cannot be written.
        """
        return export_saved_model(
            self._engine,
            export_dir_base,
            serving_input_receiver_fn,
            assets_extra,
            checkpoint_path,
            platforms=platforms,
            batch_sizes=batch_sizes,
        )
