"""RunConfig, TPUConfig, InputPipelineConfig, with their checks."""

import dataclasses
import enum
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxspec._src.base.paths import absolute_path
from jaxspec._src.base.removed_arguments import handle_removed_arguments
from jaxspec._src.base.validate import check_number, is_integer
from jaxspec._src.summary.sink import Sink, check_sinks


class InputPipelineConfig(enum.IntEnum):
    """How input_fn is called. PER_HOST_V1 and PER_HOST_V2 mean the same here: once in each process."""

    PER_SHARD_V1 = 1
    PER_HOST_V1 = 2
    PER_HOST_V2 = 3
    BROADCAST = 4
    SLICED = 5


_SECONDS = {"s": 1, "m": 60, "h": 3600}


@dataclasses.dataclass(frozen=True)
class TPUConfig:
    """The part of a RunConfig that concerns the devices. TensorFlow's field names."""

    iterations_per_loop: int | str = 100
    """Steps in one loop, between two turns of the host; or a time, such as "30s", "5m", "1h", that a loop takes."""
    num_shards: int | None = None
    """Devices to map over; None: all."""
    num_cores_per_replica: int | None = None
    """Model parallelism: not supported yet; the estimator refuses it."""
    per_host_input_for_training: bool | InputPipelineConfig = InputPipelineConfig.PER_HOST_V1
    """Only PER_HOST_V1 (or True) and PER_HOST_V2, which mean the same."""
    tpu_job_name: str | None = None
    """Ignored: there are no jobs."""
    initial_infeed_sleep_secs: int | None = None
    """Ignored: the first batch is fetched before anything compiles."""
    input_partition_dims: Sequence[object] | None = None
    """Spatial partitioning: not supported yet; the estimator refuses it."""
    eval_training_input_configuration: InputPipelineConfig = InputPipelineConfig.PER_HOST_V1
    """Only PER_HOST_V1; the estimator refuses SLICED."""
    experimental_host_call_every_n_steps: int = 1
    """host_call runs at the global steps that this divides, in training, step 0 included; 0: never."""
    experimental_allow_per_host_v2_parallel_get_next: bool = False
    """Ignored."""
    experimental_feed_hook: object = None
    """Ignored."""

    def __post_init__(self) -> None:
        loop = self.iterations_per_loop
        if not (isinstance(loop, str) or is_integer(loop)) or not re.fullmatch(r"[1-9][0-9]*[smh]?", str(loop)):
            raise ValueError(
                "Invalid TPUConfig `iterations_per_loop` value. Value must be positive integer value or time-based "
                "value `<N><s|m|h>` where <N> is any positive integer and `s`, `m`, `h` are unit of time in seconds, "
                f"minutes, hours respectively. Examples of valid values: `3600s`, `60m`, `1h`. Got {loop!r}."
            )
        check_number("TPUConfig num_shards", self.num_shards, above=0, whole=True)
        check_number("TPUConfig initial_infeed_sleep_secs", self.initial_infeed_sleep_secs, minimum=0, whole=True)
        cores = self.num_cores_per_replica
        if cores is not None and cores not in (1, 2, 4, 8, 16, 32, 64, 128):
            raise ValueError(f"num_cores_per_replica must be 1, 2, 4, 8, 16, 32, 64, 128; got {cores}")
        every = self.experimental_host_call_every_n_steps
        check_number("TPUConfig experimental_host_call_every_n_steps", every, minimum=0, whole=True)
        kind = self.per_host_input_for_training
        if isinstance(kind, bool):
            kind = InputPipelineConfig.PER_HOST_V1 if kind else InputPipelineConfig.PER_SHARD_V1
        elif kind not in list(InputPipelineConfig):
            raise ValueError(f"per_host_input_for_training must be True, False or an InputPipelineConfig; got {kind!r}")
        object.__setattr__(self, "per_host_input_for_training", InputPipelineConfig(kind))
        dims = self.input_partition_dims
        if dims is not None and len(dims) not in (1, 2):
            raise ValueError("input_partition_dims must be a list/tuple with one or two elements.")
        if dims is not None and kind != InputPipelineConfig.PER_HOST_V2:
            raise ValueError("input_partition_dims is only supported in PER_HOST_V2 mode.")
        if dims is not None and cores is None:
            raise ValueError("input_partition_dims requires setting num_cores_per_replica.")
        evaluation = self.eval_training_input_configuration
        if evaluation not in (InputPipelineConfig.PER_HOST_V1, InputPipelineConfig.SLICED):
            raise ValueError(f"eval_training_input_configuration must be PER_HOST_V1 or SLICED; got {evaluation}.")
        object.__setattr__(self, "eval_training_input_configuration", InputPipelineConfig(evaluation))

    @property
    def loop_seconds(self) -> int | None:
        """The time a loop should take, in seconds; None where `iterations_per_loop` counts steps."""
        text = self.iterations_per_loop
        return int(text[:-1]) * _SECONDS[text[-1]] if isinstance(text, str) and text[-1] in _SECONDS else None

    @property
    def loop_steps(self) -> int | None:
        """The steps of a loop; None where `iterations_per_loop` is a time."""
        return None if self.loop_seconds is not None else int(self.iterations_per_loop)


_UNSET: Any = object()
_DEFAULT_SAVE_SECS = 600


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """How `TPUEstimator` runs. TensorFlow's field names; steps are global steps, counted from 0.

    With neither `save_checkpoints_steps` nor `save_checkpoints_secs` given, a checkpoint is written every 600
    seconds; with both None, never.
    """

    tpu_config: TPUConfig | None = None
    _: dataclasses.KW_ONLY
    model_dir: str | None = None
    """Where checkpoints and event files go; None: a temporary directory."""
    tf_random_seed: int | None = None
    """Seed of all randomness; None means 0."""
    save_summary_steps: int | None = 100
    """Steps between two automatic summaries of the training loss; None or 0: no automatic summaries in training, rates
    and goodput included. host_call writes in any case."""
    save_checkpoints_steps: int | None = _UNSET
    """Steps between two checkpoints, counted from the last one; they fall exactly there."""
    save_checkpoints_secs: int | None = _UNSET
    """Seconds between two checkpoints."""
    keep_checkpoint_max: int | None = 5
    """Checkpoints kept; None or 0: all."""
    keep_checkpoint_every_n_hours: float = 10000
    """One checkpoint of each such time is kept besides, for ever."""
    log_step_count_steps: int | None = 100
    """Steps between two log lines of the loss and of `global_step/sec` and `examples/sec`; None: none."""
    fail_on_nan_loss: bool = True
    """Whether a NaN loss ends training. False goes on, with warnings that count them: for optimizers that leave such
    steps out (`optax.apply_if_finite`). A checkpoint is never written with a weight that is not finite."""
    progress_bar: bool | None = None
    """Whether train, evaluate and predict show a progress bar, drawn by tqdm on standard error. It appears on a
    terminal and in a notebook; elsewhere the log lines show the progress. None: not where `NO_COLOR` is set or `TERM`
    is "dumb"; True: also there; False: never."""
    coordinator_address: str | None = None
    """`host:port` of process 0, for a run of several processes. The three fields are given together, or left as None:
    then the environment decides, as far as JAX knows it (Cloud TPU, GKE, SLURM, Open MPI). Processes that the program
    has joined itself, with `jax.distributed.initialize`, stay as they are."""
    num_processes: int | None = None
    """How many processes there are. 1: this process stays alone, whatever the environment says."""
    process_id: int | None = None
    """Which process this is, counted from 0. It differs between them."""
    max_programs: int = 16
    """Batches may come in so many different shapes, such as padded lengths: each is compiled when it first comes."""
    process_timeout_secs: float = 900
    """How long a process waits for the others, at the start and later. A process that is killed is noticed before."""
    stall_timeout_secs: float | None = 900
    """After so many seconds without progress train, evaluate and predict log a warning that says what they wait for,
    with the stacks of all threads, and once a minute more. Time spent compiling, or in your code between two
    predictions, does not count. Nothing is ended. None: no warning."""
    max_restarts: int = 0
    """How often one call of train goes on from the newest checkpoint after an error of the devices or the runtime that
    a restart may cure. 0: the error is raised."""
    compilation_cache_dir: str | None = None
    """The directory of JAX's persistent compilation cache, on a disk or in a bucket: the next process that runs the
    same program reads it from there instead of compiling it. JAX's own setting (`jax_compilation_cache_dir` or
    `JAX_COMPILATION_CACHE_DIR`) wins, with a warning if it names another directory. The cache is that of the whole
    process from the first estimator on. Whoever can write to the directory can run code in your process. None: JAX's
    own setting decides."""
    writers: Sequence[Sink] = ()
    """Your own writers of summaries, such as one for Weights & Biases: see `summary.Sink`. Each gets what goes to the
    event files: what train and evaluate write themselves, and what host functions write with `summary`. Kept as a
    tuple."""
    _saved_before: tuple[int | None, int | None] | None = dataclasses.field(default=None, repr=False, compare=False)
    """(save_checkpoints_steps, save_checkpoints_secs) of the config that `dataclasses.replace` makes this one from: it
    passes on every field, and this tells which of the two is meant."""

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        if self.tpu_config is None:
            put("tpu_config", TPUConfig())
        elif not isinstance(self.tpu_config, TPUConfig):
            raise TypeError(f"tpu_config must be a TPUConfig, given: {self.tpu_config!r}")
        if self.model_dir is not None:
            put("model_dir", os.fspath(self.model_dir))
            if not self.model_dir:
                raise ValueError("model_dir should be non-empty.")
        if self.compilation_cache_dir is not None:
            if not isinstance(self.compilation_cache_dir, str | os.PathLike):
                raise TypeError(f"compilation_cache_dir must be a path, got {self.compilation_cache_dir!r}.")
            if not os.fspath(self.compilation_cache_dir):
                raise ValueError("compilation_cache_dir is empty: name a directory, or leave it as None.")
            put("compilation_cache_dir", absolute_path(self.compilation_cache_dir))
        steps, secs = self.save_checkpoints_steps, self.save_checkpoints_secs
        if steps is _UNSET and secs is _UNSET:
            secs = _DEFAULT_SAVE_SECS
        steps, secs = (None if value is _UNSET else value for value in (steps, secs))
        if steps is not None and secs is not None and self._saved_before is not None:
            steps_before, secs_before = self._saved_before
            if steps == steps_before and secs != secs_before:
                steps = None
            elif secs == secs_before and steps != steps_before:
                secs = None
        if steps is not None and secs is not None:
            raise ValueError(
                f"`save_checkpoints_steps` and `save_checkpoints_secs` cannot be both set. Got {steps!r} and {secs!r}; "
                "leave one of them out."
            )
        put("save_checkpoints_steps", steps)
        put("save_checkpoints_secs", secs)
        put("_saved_before", (steps, secs))
        if not isinstance(self.fail_on_nan_loss, bool | np.bool_):
            raise TypeError(f"fail_on_nan_loss must be True or False, got {self.fail_on_nan_loss!r}.")
        seed = self.tf_random_seed
        if seed is not None and not is_integer(seed):
            raise ValueError(f"tf_random_seed must be integer. Got {seed!r}.")
        if seed is not None and not -(2**63) <= seed < 2**63:
            raise ValueError(f"tf_random_seed must fit into 64 bits. Got {seed!r}.")
        put("writers", check_sinks("RunConfig writers", self.writers))
        for name in ("save_summary_steps", "save_checkpoints_steps", "save_checkpoints_secs", "keep_checkpoint_max"):
            check_number(name, getattr(self, name), minimum=0, whole=name != "save_checkpoints_secs")
        check_number("max_programs", self.max_programs, above=0, whole=True, required=True)
        check_number("max_restarts", self.max_restarts, minimum=0, whole=True, required=True)
        positive = (
            "keep_checkpoint_every_n_hours",
            "log_step_count_steps",
            "process_timeout_secs",
            "stall_timeout_secs",
        )
        for name in positive:
            check_number(name, getattr(self, name), above=0)
        if self.coordinator_address is not None and not isinstance(self.coordinator_address, str):
            raise TypeError(f"coordinator_address must be a string 'host:port', got {self.coordinator_address!r}.")
        check_number("num_processes", self.num_processes, above=0, whole=True)
        check_number("process_id", self.process_id, minimum=0, whole=True)
        if self.process_id is not None and self.num_processes is not None and self.process_id >= self.num_processes:
            raise ValueError(
                f"process_id is {self.process_id}, but there are {self.num_processes} processes: it is counted from 0."
            )

    def replace(self, **kwargs: Any) -> "RunConfig":
        """A checked copy with some fields changed. Setting one of save_checkpoints_steps and _secs clears the other."""
        names = [field.name for field in dataclasses.fields(self) if not field.name.startswith("_")]
        for name in kwargs:
            if name not in names:
                raise ValueError(f"Replacing {name} is not supported. Allowed properties are {sorted(names)}.")
        saves = {"save_checkpoints_steps", "save_checkpoints_secs"}
        if saves & kwargs.keys():
            kwargs = dict.fromkeys(saves) | kwargs
        return dataclasses.replace(self, **kwargs)


RunConfig.__init__ = handle_removed_arguments(RunConfig.__init__)  # type: ignore[method-assign]
