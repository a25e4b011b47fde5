"""The state that a verb starts from: the live one, one read from a checkpoint, or a fresh one."""

import functools
import logging
from collections.abc import Sequence
from typing import Protocol

import jax
import jax.numpy as jnp

from jaxspec._src.base.types import AnyFunction, Batch, PyTree, Variables
from jaxspec._src.checkpoint import checksums, restore
from jaxspec._src.data.prefetch import Infeed
from jaxspec._src.device.mapping import broadcast, broadcast_sharding, from_first_process, local_devices_of, on_devices
from jaxspec._src.device.shards import first_shard
from jaxspec._src.run.sources import Source
from jaxspec._src.run.warm_start import WarmStart
from jaxspec._src.spec.tpu_estimator_spec import TPUEstimatorSpec
from jaxspec._src.step.init import InitFn, init_on_one_shard
from jaxspec._src.step.jaxprs import debugging
from jaxspec._src.step.model import Model
from jaxspec._src.step.state import TrainState, finish_train_state, scaffold_variables, split_rng
from jaxspec._src.step.tracing import TrainOpTrace, shapes, trace_train_op

_logger = logging.getLogger("jaxspec")


class FirstShard(Protocol):
    """What makes or describes variables: the batch of one shard, `Infeed` for example."""

    def first_shard(self) -> tuple[Batch, Batch]:
        """(features, labels)"""


class InitialState:
    """Makes the state of each `Source`, on all devices.

    Args:
      model: the model_fn with its hyper-parameters.
      init_fn: it makes the variables; or None.
      devices: those that training is mapped over.
      inference_devices: those of this process that evaluation and prediction are mapped over.
      seed: of all randomness.
      warm_start: gives fresh variables their values; or None.
    """

    def __init__(
        self,
        model: Model,
        init_fn: InitFn | None,
        devices: Sequence[jax.Device],
        inference_devices: Sequence[jax.Device],
        *,
        seed: int,
        warm_start: WarmStart | None = None,
    ) -> None:
        self._model, self._init_fn, self._seed, self._warm_start = model, init_fn, seed, warm_start
        self._devices, self._inference_devices = tuple(devices), tuple(inference_devices)
        self._last_read: dict[tuple[str, str | None], TrainState] = {}
        """The last state that was read for evaluate or predict, by path, inode and time of its checkpoint."""
        self._opt_state: PyTree = None
        """Shapes and dtypes of the optimizer state, once they are known."""

    @property
    @jax.transfer_guard("allow")
    def rng(self) -> jax.Array:
        """The key that the state carries."""
        return split_rng(jax.random.key(self._seed))[1]

    @jax.transfer_guard("allow")
    def variables(self, source: Source, infeed: Infeed) -> Variables:
        """What TRAIN is traced with: the fresh variables, or the shapes of those that are live or stored.

        Under `jax.disable_jit()` they are arrays in any case.
        """
        self._last_read.clear()  # training makes a live state
        with jax.default_device(self._inference_devices[0]):
            if source.live is not None:
                live = source.live.state.variables
                return first_shard(live) if debugging() else shapes(live)
            if source.path is None:
                return self._fresh_variables(infeed)
            if debugging():
                return self._init_variables(infeed)
            return self._stored_structure(source.path, *infeed.first_shard())

    @jax.transfer_guard("allow")
    def for_training(self, source: Source, variables: Variables, trace: TrainOpTrace | None) -> TrainState:
        """The state to train.

        Args:
          variables: what `variables` returned.
          trace: what TRAIN made of them; None only with a live state.
        """
        if trace is not None:
            self._opt_state = trace.opt_state
        if source.live is not None:
            return source.live.state
        assert trace is not None
        with jax.default_device(self._inference_devices[0]):
            if source.path is None:
                # The same in all processes, even if init_fn is not: the values are those of process 0.
                fresh = from_first_process(finish_train_state(trace, variables, self.rng))
                return broadcast(fresh, self._devices)
            like = TrainState(jnp.int32(source.step), variables, trace.opt_state, self.rng)
            restored = restore.read_state(source.path, like, broadcast_sharding(local_devices_of(self._devices)))
        _logger.info("Restored step %d from %s.", source.step, source.path)
        return on_devices(restored, self._devices)

    @jax.transfer_guard("allow")
    def for_inference(self, source: Source, infeed: FirstShard) -> TrainState:
        """The state to evaluate or predict with. Fresh variables are on one device, without `Scaffold.init_fn`.

        The optimizer state is in it only if model_fn names `opt_state`, and never in a fresh one.
        """
        with jax.default_device(self._inference_devices[0]):
            if source.live is not None:
                live = on_devices(source.live.state, self._inference_devices)
                return live if self._model.takes_opt_state else live._replace(opt_state=None)
            if source.path is not None:
                return self._read(source.path, source.step, *infeed.first_shard())
            return TrainState(jnp.int32(source.step), self._fresh_variables(infeed), None, self.rng)

    @jax.transfer_guard("allow")
    def finish_fresh(self, state: TrainState, spec: TPUEstimatorSpec) -> TrainState:
        """A fresh state of `for_inference` after `Scaffold.init_fn`, on all devices."""
        with jax.default_device(self._inference_devices[0]):
            variables = scaffold_variables(spec, state.variables)
            return broadcast(state._replace(variables=variables), self._inference_devices)

    def _read(self, path: str, step: int, features: Batch, labels: Batch) -> TrainState:
        """The state of a checkpoint, which is read once as long as the calls ask for the same one."""
        key = (path, checksums.version(path))
        if key not in self._last_read:
            self._last_read.clear()  # its memory goes before more is needed
            variables = self._stored_structure(path, features, labels)
            state = TrainState(jnp.int32(step), variables, None, self.rng)
            sharding = broadcast_sharding(self._inference_devices)
            if self._model.takes_opt_state:
                state = state._replace(opt_state=self._opt_state_like(variables, features, labels))
                state = restore.read_state(path, state, sharding)._replace(rng=self.rng)
            else:
                state = state._replace(variables=restore.read_variables(path, variables, sharding))
            self._last_read[key] = broadcast(state, self._inference_devices)
        return self._last_read[key]

    def _fresh_variables(self, infeed: FirstShard) -> Variables:
        """Those of init_fn, after the warm start."""
        variables = self._init_variables(infeed)
        return variables if self._warm_start is None else self._warm_start(variables)

    def _init_variables(self, infeed: FirstShard) -> Variables:
        variables: Variables = self._init(self._init_rng, *infeed.first_shard())
        return variables

    def _stored_structure(self, path: str, features: Batch, labels: Batch) -> Variables:
        """The structure of the variables that a checkpoint is read into: that of init_fn's, or else the stored one.

        init_fn may fail on the input of this verb: in predict there are no labels.
        """
        try:
            made: Variables = jax.eval_shape(self._init, self._init_rng, features, labels)
            return made
        except Exception:
            stored: Variables | None = restore.stored_variables(path)
            if stored is None:
                raise
            return stored

    def _opt_state_like(self, variables: Variables, features: Batch, labels: Batch) -> PyTree:
        """The structure of the optimizer state, which comes out of model_fn in TRAIN."""
        if self._opt_state is None:
            try:
                self._opt_state = trace_train_op(self._model, variables, self.rng, features, labels).opt_state
            except Exception as error:
                error.add_note(
                    "model_fn names `opt_state`: to read it from a checkpoint, model_fn is traced in mode 'train' on "
                    "this input. Where that needs labels, call evaluate before predict, or train in the same process."
                )
                raise
        return self._opt_state

    @property
    def _init_rng(self) -> jax.Array:
        return split_rng(jax.random.key(self._seed))[0]

    @functools.cached_property
    def _init(self) -> AnyFunction:
        """`(rng, features, labels) -> variables`, compiled for each kind of batch once."""
        if self._init_fn is None:
            raise ValueError(
                "init_fn is needed to make the variables, or to know their structure: pass TPUEstimator(model_fn, "
                "init_fn=...), a Flax Module or a function of rng and features."
            )
        return jax.jit(init_on_one_shard(self._init_fn, self._model.params_for))
