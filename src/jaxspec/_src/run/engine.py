"""What the verbs of one TPUEstimator share: devices, compiled programs, live state, savers, input."""

import contextlib
import functools
import logging
import threading
from collections.abc import Generator, Iterable, Iterator
from typing import TYPE_CHECKING

import jax

from jaxspec._src.base.activities import doing
from jaxspec._src.base.hyperparameters import with_values
from jaxspec._src.base.tpu_context import TPUContext
from jaxspec._src.base.types import HyperParameters, InputFn, PyTree
from jaxspec._src.base.validate import check_number
from jaxspec._src.checkpoint.saver import Saver
from jaxspec._src.data.input_request import InputRequest
from jaxspec._src.data.lent_iterators import InputMemory
from jaxspec._src.data.prefetch import Infeed
from jaxspec._src.device.compilation_cache import use_compilation_cache
from jaxspec._src.device.joining import join_processes
from jaxspec._src.device.live_state import LiveState
from jaxspec._src.device.mapping import choose_devices, describe_devices, inference_devices_of, local_devices_of
from jaxspec._src.device.processes import Exchange, open_exchange, report_end_at_exit
from jaxspec._src.run.config import RunConfig
from jaxspec._src.run.initial_state import InitialState
from jaxspec._src.run.program_cache import Programs
from jaxspec._src.run.signals import raise_if_interrupted
from jaxspec._src.run.sources import Source, Sources
from jaxspec._src.run.training_clock import TrainingClock
from jaxspec._src.run.validate import check_input_fn
from jaxspec._src.run.warm_start import WarmStart
from jaxspec._src.run.watchdog import Watchdog
from jaxspec._src.spec.mode import ModeKeys
from jaxspec._src.spec.tpu_estimator_spec import ModelFn
from jaxspec._src.step.init import InitFn
from jaxspec._src.step.model import Model

if TYPE_CHECKING:
    from jaxspec._src.run.progress import ProgressBar

_logger = logging.getLogger("jaxspec")

VERBS = {ModeKeys.TRAIN: "train", ModeKeys.EVAL: "evaluate", ModeKeys.PREDICT: "predict"}
_BATCH_SIZE_NAMES = {
    ModeKeys.TRAIN: "train_batch_size",
    ModeKeys.EVAL: "eval_batch_size",
    ModeKeys.PREDICT: "predict_batch_size",
}


class Engine:
    """Made once for each estimator. The devices are asked for when a verb needs them, not before.

    Args:
      model_fn, init_fn, params: the user's, checked.
      config: with `model_dir` filled in.
      use_tpu: False: one CPU device, one step a loop.
      batch_sizes: global, by mode.
      warm_start: gives fresh variables their values; or None.
    """

    def __init__(
        self,
        model_fn: ModelFn,
        init_fn: InitFn | None,
        params: HyperParameters,
        config: RunConfig,
        *,
        use_tpu: bool,
        batch_sizes: dict[str, int | None],
        warm_start: WarmStart | None = None,
    ) -> None:
        assert config.model_dir is not None
        assert config.tpu_config is not None
        join_processes(
            config.coordinator_address,
            config.num_processes,
            config.process_id,
            timeout_secs=config.process_timeout_secs,
        )
        if jax.distributed.is_initialized():
            report_end_at_exit()
            jax.devices()  # the processes wait for each other here, and not when one has gone
        if config.compilation_cache_dir is not None:
            use_compilation_cache(config.compilation_cache_dir)
        self.model_fn, self._init_fn, self.params = model_fn, init_fn, params
        self.config, self.model_dir, self.tpu_config = config, config.model_dir, config.tpu_config
        self.use_tpu, self.batch_sizes, self.warm_start = use_tpu, batch_sizes, warm_start
        if use_tpu:
            for mode, size in batch_sizes.items():
                check_number(_BATCH_SIZE_NAMES[mode], size, above=0, whole=True)
        self.live_state = LiveState()
        self.sources = Sources(self.model_dir, self.live_state, warm_starts=warm_start is not None)
        self.clock = TrainingClock()
        """Of the training that is under way, or was the last one."""
        self._input_memory = InputMemory()
        self._savers: dict[str, Saver] = {}
        self._announced = False
        self._bar: ProgressBar | None = None
        self._training = threading.Lock()

    @functools.cached_property
    def devices(self) -> tuple[jax.Device, ...]:
        """What training is mapped over: the devices of all processes."""
        return choose_devices(use_tpu=self.use_tpu, num_shards=self.tpu_config.num_shards)

    @functools.cached_property
    def local_devices(self) -> tuple[jax.Device, ...]:
        """Those of the devices that belong to this process."""
        return local_devices_of(self.devices)

    @functools.cached_property
    def inference_devices(self) -> tuple[jax.Device, ...]:
        """What evaluation and prediction are mapped over: devices of this process."""
        return inference_devices_of(self.devices)

    def exchange(self, mode: str) -> Exchange:
        """The exchange of a run that begins now in all processes."""
        return open_exchange(VERBS[mode], timeout_secs=self.config.process_timeout_secs)

    def announce(self) -> None:
        """Logs the devices, once."""
        if not self._announced:
            _logger.info("Running on %s.", describe_devices(self.devices, use_tpu=self.use_tpu))
            self._announced = True

    @property
    def loop_steps(self) -> int | None:
        """Steps a loop; None if loops last a given time."""
        return self.tpu_config.loop_steps if self.use_tpu else 1

    @functools.cached_property
    def model(self) -> Model:
        """The model_fn with its hyper-parameters."""
        context = TPUContext(len(self.devices), jax.process_count(), _host=None)
        params = with_values(self.params, use_tpu=self.use_tpu, context=context)
        return Model(self.model_fn, params, self.config)

    @functools.cached_property
    def programs(self) -> Programs:
        """The compiled programs, each made once."""
        return Programs(self.model, self.devices, self.inference_devices, loop_steps=self.loop_steps)

    @functools.cached_property
    def initial_state(self) -> InitialState:
        """Makes the state that a verb starts from."""
        seed = self.config.tf_random_seed or 0
        return InitialState(
            self.model, self._init_fn, self.devices, self.inference_devices, seed=seed, warm_start=self.warm_start
        )

    @contextlib.contextmanager
    def training(self, verb: str = "train") -> Iterator[None]:
        """Held by `train` and `save`; RuntimeError if another thread, or a hook, trains already."""
        if not self._training.acquire(blocking=False):
            raise RuntimeError(f"{verb} was called while this estimator is training.")
        try:
            yield
        finally:
            self._training.release()

    def clock_stopped(self, batches: Generator[Iterable[PyTree], None, None]) -> Iterator[PyTree]:
        """The items of all batches. The time that a batch takes, while a hook of a training waits, does not count for
        the rates of that training.

        A watchdog watches while a batch is made, and not while the caller uses its items.
        """
        with contextlib.closing(Watchdog("prediction", self.config.stall_timeout_secs)) as watchdog:
            try:
                while True:
                    with self.clock.stopped(), watchdog:
                        batch = next(batches, None)
                    if batch is None:
                        return
                    for item in batch:
                        raise_if_interrupted()
                        yield item
            finally:
                with self.clock.stopped(), watchdog:
                    batches.close()

    def fingerprint(self, mode: str) -> dict[str, object]:
        """What must be the same in all processes that run a verb, by name."""
        config, tpu_config = self.config, self.tpu_config
        return {
            "the verb": VERBS[mode],
            _BATCH_SIZE_NAMES[mode]: self.batch_sizes[mode],
            "model_dir": self.model_dir,
            "the version of JAX": jax.__version__,
            "RunConfig.tf_random_seed": config.tf_random_seed,
            "RunConfig.save_checkpoints_steps": config.save_checkpoints_steps,
            "RunConfig.save_checkpoints_secs": config.save_checkpoints_secs,
            "RunConfig.fail_on_nan_loss": config.fail_on_nan_loss,
            "TPUConfig.iterations_per_loop": tpu_config.iterations_per_loop,
        }

    def source(self, checkpoint_path: str | None = None, *, training: bool | None = None) -> Source:
        """The state that a verb uses: a leased one.

        Args:
          training: as in `Sources.current`; None: whether another thread, or a caller of this one, trains.
        """
        if checkpoint_path:
            return self.sources.of_checkpoint(checkpoint_path)
        return self.sources.current(training=self._training.locked() if training is None else training)

    def agreed_source(self, exchange: Exchange, source: Source) -> Source:
        """The source that all processes use: that of process 0, which may know of a newer checkpoint.

        Raises:
          RuntimeError: if another process cannot use it.
        """
        found = exchange.gather("choice of the state", (source.live is not None, source.path, source.step))
        is_live, path, _ = found[0]
        if all(other == found[0] for other in found):
            return source
        if path is None or is_live:
            which = [
                f"process {i}: {'the state in memory' if live else path or 'a fresh state'}, of step {step}"
                for i, (live, path, step) in enumerate(found)
            ]
            source.close()
            raise RuntimeError(
                f"the processes of this run would go on from different states ({'; '.join(which)}). All must see the "
                f"same model_dir, which is {self.model_dir} here: put it on storage that they share."
            )
        source.close()
        return self.sources.of_checkpoint(path)

    def saver(self, checkpoint_dir: str) -> Saver:
        """The one saver of a directory."""
        if checkpoint_dir not in self._savers:
            self._savers[checkpoint_dir] = Saver(
                checkpoint_dir,
                keep_max=self.config.keep_checkpoint_max,
                keep_every_n_hours=self.config.keep_checkpoint_every_n_hours,
            )
        return self._savers[checkpoint_dir]

    def batch_size(self, mode: str) -> int | None:
        """The rows of a batch of this process; None if the input decides. ValueError if the verb needs a size."""
        size, name = self.batch_sizes[mode], _BATCH_SIZE_NAMES[mode]
        if not self.use_tpu:
            check_number(name, size, above=0, whole=True)
            return size
        if size is None:
            raise ValueError(
                f"`{name}` cannot be `None` if .{VERBS[mode]} is called: pass {name}= to the TPUEstimator constructor, "
                "the rows of a batch over all shards."
            )
        if size % len(self.devices):
            raise ValueError(
                f"{name.split('_')[0]} batch size {size} must be divisible by number of replicas {len(self.devices)}. "
                f"Choose a multiple of {len(self.devices)}, or fewer shards with TPUConfig(num_shards=...)."
            )
        return int(size * len(self.local_devices) // len(self.devices))

    def open_input(
        self,
        input_fn: InputFn,
        mode: str,
        *,
        limit: int | None = None,
        resume: bool | None = None,
        source: Source | None = None,
    ) -> Infeed:
        """Calls input_fn, and waits for its first batch.

        Args:
          limit, resume: as in `InputRequest`.
          source: the state that is trained, which the input goes on from.
        """
        check_input_fn(input_fn)
        batch_size = self.batch_size(mode)
        context = TPUContext(len(self.devices), jax.process_count(), jax.process_index())
        rows = {} if batch_size is None else {"batch_size": batch_size}
        request = InputRequest(
            input_fn,
            {"params": with_values(self.params, context=context, **rows), "mode": mode, "config": self.config},
            mode=mode,
            devices=self.devices if mode == ModeKeys.TRAIN else self.inference_devices,
            batch_size=batch_size if self.use_tpu else None,
            ragged=mode != ModeKeys.TRAIN or not self.use_tpu,
            limit=limit,
            max_programs=self.config.max_programs,
            position=None if source is None else source.position(),
            resume=resume,
            step=0 if source is None else source.step,
            restarted=source is not None and source.path is not None,
        )
        with doing("the input"):
            return Infeed(request, memory=self._input_memory, check_interrupt=raise_if_interrupted)

    @contextlib.contextmanager
    def progress(self, mode: str, *, start: int, total: int | None) -> Iterator["ProgressBar | None"]:
        """A progress bar, if there is to be one. The bar of a verb that is under way is paused meanwhile."""
        from jaxspec._src.run.progress import open_progress  # it loads tqdm

        outer = self._bar
        if outer is not None:
            outer.pause()
        bar = self._bar = open_progress(
            VERBS[mode],
            start=start,
            total=total,
            batch_size=self.batch_sizes[mode],
            enabled=self.config.progress_bar if jax.process_index() == 0 else False,
        )
        try:
            yield bar
        finally:
            if bar is not None:
                bar.close()
            self._bar = outer
            if outer is not None:
                outer.resume()
