"""What is compiled for an estimator: a program for each mode and kind of batch, and the states that they start from."""

import functools
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec._src.checkpoint import store
from jaxspec._src.data.prefetch import Infeed
from jaxspec._src.device.gather import first_shard
from jaxspec._src.device.mapping import broadcast, broadcast_sharding
from jaxspec._src.device.program import Program, prefers_single_steps
from jaxspec._src.device.ragged_batches import RaggedPrograms
from jaxspec._src.run.sources import Source
from jaxspec._src.spec.mode import ModeKeys
from jaxspec._src.spec.tpu_estimator_spec import TPUEstimatorSpec, replaced
from jaxspec._src.step.debugging import debugging
from jaxspec._src.step.inference_step import eval_step, predict_step
from jaxspec._src.step.init import init_on_one_shard, noting_verb
from jaxspec._src.step.model import Model
from jaxspec._src.step.state import TrainState, finish_train_state, scaffold_variables, split_rng
from jaxspec._src.step.tracing import shapes, trace_spec, trace_train_op
from jaxspec._src.step.train_step import train_step

_logger = logging.getLogger("jaxspec")

_STACK_BYTES = 4 << 20
"""Batches are stacked into transfers of about this size: larger ones cost more than the dispatches they save."""
_OUTPUT_BYTES = 64 << 20
"""The outputs that one dispatch may keep on a device."""
_MOST_BATCHES_A_STACK = 100


class Compiled(NamedTuple):
    """What is compiled for one mode and one kind of batch."""

    full: Program
    tail: RaggedPrograms | None
    capacity: int
    spec: TPUEstimatorSpec
    """As it leaves the device, with `jax.ShapeDtypeStruct` leaves; its host functions."""

    def with_hooks_of(self, spec: TPUEstimatorSpec) -> "Compiled":
        """The program with the hooks that another trace of model_fn has made."""
        names = ("training_hooks", "evaluation_hooks", "prediction_hooks")
        return self._replace(spec=replaced(self.spec, **{name: getattr(spec, name) for name in names}))


class Programs:
    """Makes each program once.

    Args:
      model: the model_fn with its hyper-parameters.
      init_fn: what makes the variables, or None.
      devices: what is mapped over.
      seed: of all randomness.
      loop_steps: the most steps of a training loop; None: no limit.
    """

    def __init__(
        self, model: Model, init_fn: Any, devices: Sequence[jax.Device], *, seed: int, loop_steps: int | None
    ) -> None:
        self._model, self._init_fn, self._devices = model, init_fn, tuple(devices)
        self._seed, self._loop_steps = seed, loop_steps
        self._made: dict[Any, Compiled] = {}
        self._last_read: tuple[Any, TrainState] | None = None
        self._opt_state: Any = None
        """Shapes and dtypes of the optimizer state, once they are known."""

    @jax.transfer_guard("allow")  # a caller's guard is about his own code: what a program needs is meant to be sent
    def training(self, infeed: Infeed, source: Source) -> tuple[Compiled, Callable[[], TrainState]]:
        """(the program for the batches of `infeed`, a function that gives the state to train).

        The hooks of the program's spec are new ones at each call: model_fn is traced again where it makes any.
        """
        self._last_read = None  # from now on there is a live state
        features, labels = infeed.first_shard()
        key = _signature(ModeKeys.TRAIN, infeed)
        program = self._made.get(key)
        live: TrainState | None = None if source.live is None else source.live.state
        if live is not None and program is not None and not program.spec.training_hooks:
            return program, lambda: live
        with jax.default_device(self._devices[0]), noting_verb("train"):
            init_rng, step_rng = self._rngs()
            if live is not None:
                variables = first_shard(live.variables) if debugging() else shapes(live.variables)
            elif source.path is None or debugging():
                variables = self._init_variables(init_rng, features, labels)
            else:
                variables = self._variables_like(source.path, init_rng, features, labels)
            trace = trace_train_op(self._model, variables, step_rng, features, labels)
            self._opt_state = trace.opt_state
            if program is None:
                single = prefers_single_steps(trace.jaxpr, self._devices)
                loop = Program(train_step(self._model), self._devices, trains=True, single_step=single)
                capacity = 1 if single else _capacity(infeed, trace.spec, self._loop_steps)
                program = self._made[key] = Compiled(loop, None, capacity, trace.spec)
            program = program.with_hooks_of(trace.spec)

        @jax.transfer_guard("allow")
        def state() -> TrainState:
            if live is not None:
                return live
            with jax.default_device(self._devices[0]):
                if source.path is None:
                    fresh: TrainState = broadcast(finish_train_state(trace, variables, step_rng), self._devices)
                    return fresh
                like = TrainState(None, variables, trace.opt_state, step_rng)
                restored = store.read_state(source.path, like, broadcast_sharding(self._devices))
            _logger.info("Restored step %d from %s.", source.step, source.path)
            return restored

        return program, state

    @jax.transfer_guard("allow")
    def inference(self, mode: str, infeed: Infeed, source: Source) -> tuple[Compiled, TrainState]:
        """(the program for the batches of `infeed`, the state of `source`).

        The state has its optimizer state only if model_fn names `opt_state`, and none where nothing was trained. Hooks as in `training`.
        """
        features, labels = infeed.first_shard()
        key = _signature(mode, infeed)
        program = self._made.get(key)
        fresh = source.live is None and source.path is None
        with jax.default_device(self._devices[0]), noting_verb("evaluate" if mode == ModeKeys.EVAL else "predict"):
            if source.live is not None:
                state: TrainState = source.live.state
                if not self._model.takes_opt_state:
                    state = state._replace(opt_state=None)
            elif source.path is not None:
                state = self._read(source, features, labels)
            else:
                init_rng, step_rng = self._rngs()
                variables = self._init_variables(init_rng, features, labels)
                state = TrainState(jnp.asarray(source.step, jnp.int32), variables, None, step_rng)
            step = (eval_step if mode == ModeKeys.EVAL else predict_step)(self._model)
            if program is None:
                spec, jaxpr = trace_spec(step, state, features, labels)
                single = prefers_single_steps(jaxpr, self._devices)
                full = Program(step, self._devices, trains=False, single_step=single)
                capacity = 1 if single else _capacity(infeed, spec, _MOST_BATCHES_A_STACK)
                tail = RaggedPrograms(step, self._devices, infeed.rows_per_shard)
                program = self._made[key] = Compiled(full, tail, capacity, spec)
            elif program.spec.evaluation_hooks or program.spec.prediction_hooks:
                program = program.with_hooks_of(trace_spec(step, state, features, labels)[0])
            if fresh:
                state = state._replace(variables=scaffold_variables(program.spec, state.variables))
                state = broadcast(state, self._devices)
        return program, state

    def _read(self, source: Source, features: Any, labels: Any) -> TrainState:
        """The state of a checkpoint, which is read once as long as the calls ask for the same one."""
        assert source.path is not None
        found = os.stat(source.path)
        key = (source.path, found.st_ino, found.st_mtime_ns)
        last = self._last_read
        if last is None or last[0] != key:
            self._last_read = None  # its memory goes before more is needed
            init_rng, step_rng = self._rngs()
            like = self._variables_like(source.path, init_rng, features, labels)
            sharding = broadcast_sharding(self._devices)
            if self._model.takes_opt_state:
                opt_state = self._opt_state_like(like, step_rng, features, labels)
                state = store.read_state(source.path, TrainState(None, like, opt_state, step_rng), sharding)
                state = state._replace(rng=step_rng)
            else:
                variables = store.read_variables(source.path, like, sharding)
                state = TrainState(jnp.asarray(source.step, jnp.int32), variables, None, step_rng)
            last = self._last_read = (key, broadcast(state, self._devices))
        return last[1]

    def _variables_like(self, path: str, rng: jax.Array, features: Any, labels: Any) -> Any:
        """The structure of the variables that a checkpoint is read into: what init_fn makes, or else what is stored.

        init_fn may need what this verb's input has not, such as labels in predict.
        """
        try:
            return jax.eval_shape(self._init_variables, rng, features, labels)
        except Exception:
            stored = store.stored_variables(path)
            if stored is None:
                raise
            return stored

    def _opt_state_like(self, variables: Any, rng: jax.Array, features: Any, labels: Any) -> Any:
        """The structure of the optimizer state, which comes out of model_fn in TRAIN."""
        if self._opt_state is None:
            try:
                self._opt_state = trace_train_op(self._model, variables, rng, features, labels).opt_state
            except Exception as error:
                error.add_note(
                    "model_fn names `opt_state`: to read it from a checkpoint, model_fn is traced in mode 'train' on this input. Where "
                    "that needs labels, call evaluate before predict, or train in the same process."
                )
                raise
        return self._opt_state

    def _rngs(self) -> tuple[jax.Array, jax.Array]:
        """(the key for init_fn, the key that the state carries)."""
        return split_rng(jax.random.key(self._seed))

    @functools.cached_property
    def _init_variables(self) -> Any:
        """`(rng, features, labels) -> variables`, compiled for each kind of batch once."""
        if self._init_fn is None:
            raise ValueError(
                "init_fn is needed to make the variables, or to know their structure: pass TPUEstimator(model_fn, "
                "init_fn=...), a Flax Module or a function of rng and features."
            )
        return jax.jit(init_on_one_shard(self._init_fn, self._model.params_for))


def _signature(mode: str, infeed: Infeed) -> Any:
    """What a program depends on: the mode and the shapes and dtypes of a full batch; and whether there is jit."""
    assert infeed.first is not None
    leaves, structure = jax.tree.flatten(infeed.first.data)
    return mode, debugging(), infeed.batch_size, structure, tuple((leaf.shape[1:], leaf.dtype) for leaf in leaves)


def _capacity(infeed: Infeed, spec: TPUEstimatorSpec, most: int | None) -> int:
    """How many batches a dispatch takes: as many as keep its transfer and its outputs small."""
    assert infeed.first is not None
    inputs = sum(leaf.nbytes for leaf in jax.tree.leaves(infeed.first.data)) or 1
    outputs = sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(spec)) or 1
    fitting = min(_STACK_BYTES // inputs, _OUTPUT_BYTES // outputs, most or _MOST_BATCHES_A_STACK)
    return max(1, fitting)
