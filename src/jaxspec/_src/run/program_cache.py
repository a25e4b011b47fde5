"""The compiled programs of an estimator, for each mode and kind of batch."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.extend.core import Jaxpr

from jaxspec._src.base.types import AnyFunction, Variables
from jaxspec._src.data.prefetch import Infeed
from jaxspec._src.device.program import Program, prefers_single_steps
from jaxspec._src.device.ragged_batches import RaggedPrograms
from jaxspec._src.spec.mode import Mode, ModeKeys
from jaxspec._src.spec.tpu_estimator_spec import TPUEstimatorSpec, replaced
from jaxspec._src.step.inference_step import placed_step
from jaxspec._src.step.jaxprs import debugging, fingerprint
from jaxspec._src.step.model import Model
from jaxspec._src.step.state import TrainState
from jaxspec._src.step.tracing import TrainOpTrace, trace_spec, trace_train_op
from jaxspec._src.step.train_step import train_step

_TRANSFER_BYTES = 4 << 20
"""Batches are stacked into transfers of about this size. A transfer is whole also where only a part of it is used."""
_STACK_BYTES = 32 << 20
"""Likewise where nothing is transferred: a CPU reads the host's memory, and resident data is gathered on the device."""
_OUTPUT_BYTES = 64 << 20
"""The outputs that one dispatch may keep on a device."""
_MOST_BATCHES_A_STACK = 1000


class ModePrograms(NamedTuple):
    """The programs of one mode, for one kind of batch."""

    full: Program
    """For full batches."""
    ragged: RaggedPrograms
    """For batches of another size, in evaluation and prediction."""
    most_steps: int
    """The most batches of a dispatch of `full`."""
    capacity: int
    """The batches of a stack."""
    fingerprint: str
    """The same for the same computation. Empty where one process has all devices: nobody asks."""
    spec: TPUEstimatorSpec
    """Of one shard, as it leaves the device, with `jax.ShapeDtypeStruct` leaves; its host functions and hooks."""


_Signature = tuple[object, ...]


class Programs:
    """Makes the programs of each mode and kind of batch once.

    Args:
      model: the model_fn with its hyper-parameters.
      devices: those that training is mapped over.
      inference_devices: those of this process that evaluation and prediction are mapped over.
      loop_steps: the most steps of a training loop; None: no limit.
    """

    def __init__(
        self,
        model: Model,
        devices: Sequence[jax.Device],
        inference_devices: Sequence[jax.Device],
        *,
        loop_steps: int | None,
    ) -> None:
        self._model, self._loop_steps = model, loop_steps
        self._devices, self._inference_devices = tuple(devices), tuple(inference_devices)
        self._made: dict[_Signature, ModePrograms] = {}

    @jax.transfer_guard("allow")  # a user's guard concerns the user's code: the transfers here are intended
    def training(
        self, infeed: Infeed, variables: Variables, rng: jax.Array, *, trace: bool
    ) -> tuple[ModePrograms, TrainOpTrace | None]:
        """(the programs for the batches of `infeed`, what the trace of model_fn showed).

        model_fn is traced if the programs are new, and if it makes hooks: each call gets new hooks.

        Args:
          variables: arrays, or their shapes.
          rng: the key of the state.
          trace: whether model_fn is traced in any case.
        """
        made = self._made.get(_signature(ModeKeys.TRAIN, infeed))
        if made is not None and not trace and not made.spec.training_hooks:
            return self._for_input(made, infeed), None
        with jax.default_device(self._inference_devices[0]):
            traced = trace_train_op(self._model, variables, rng, *infeed.first_shard())
        step = train_step(self._model)
        return self._of_trace(ModeKeys.TRAIN, infeed, step, traced.spec, traced.jaxpr), traced

    @jax.transfer_guard("allow")
    def inference(self, mode: Mode, infeed: Infeed, state: TrainState) -> ModePrograms:
        """The programs for the batches of `infeed` on states like `state`. Hooks as in `training`."""
        made = self._made.get(_signature(mode, infeed))
        if made is not None and not (made.spec.evaluation_hooks or made.spec.prediction_hooks):
            return self._for_input(made, infeed)
        step = placed_step(mode, self._model)
        with jax.default_device(self._inference_devices[0]):
            spec, jaxpr = trace_spec(step, state, *infeed.first_shard())
        return self._of_trace(mode, infeed, step, spec, jaxpr)

    def _of_trace(
        self, mode: str, infeed: Infeed, step: AnyFunction, spec: TPUEstimatorSpec, jaxpr: Jaxpr | None
    ) -> ModePrograms:
        """New programs for what was traced; or those that were made before, with the hooks of this trace."""
        key, trains = _signature(mode, infeed), mode == ModeKeys.TRAIN
        if key not in self._made:
            devices = self._devices if trains else self._inference_devices
            single = prefers_single_steps(jaxpr, devices)
            most = 1 if single else _most_steps(spec, self._loop_steps if trains else None)
            self._made[key] = ModePrograms(
                full=Program(step, devices, trains=trains, single_step=single, most_steps=most),
                ragged=RaggedPrograms(step, self._inference_devices, infeed.rows_per_shard),
                most_steps=most,
                capacity=1,
                fingerprint="" if devices == self._inference_devices else fingerprint(jaxpr),
                spec=spec,
            )
        made = self._made[key]
        hooks = {name: getattr(spec, name) for name in ("training_hooks", "evaluation_hooks", "prediction_hooks")}
        return self._for_input(made._replace(spec=replaced(made.spec, **hooks)), infeed)

    def _for_input(self, made: ModePrograms, infeed: Infeed) -> ModePrograms:
        """The programs, with the capacity that suits an input. Each capacity is compiled when it is first used."""
        in_place = infeed.resident or self._devices[0].platform == "cpu"
        stack = _STACK_BYTES if in_place else _TRANSFER_BYTES
        return made._replace(capacity=max(1, min(stack // max(1, infeed.bytes_in_stack), _MOST_BATCHES_A_STACK)))


def _signature(mode: str, infeed: Infeed) -> _Signature:
    """What a program depends on: the mode and the shapes and dtypes of a full batch; and whether there is jit."""
    assert infeed.first is not None
    leaves, structure = jax.tree.flatten(infeed.first.data)
    return mode, debugging(), infeed.batch_size, structure, tuple((leaf.shape[1:], leaf.dtype) for leaf in leaves)


def _most_steps(spec: TPUEstimatorSpec, loop_steps: int | None) -> int:
    """The steps of a dispatch: as many as a loop has and as keep its outputs small."""
    outputs = sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(spec)) or 1
    return max(1, min(_OUTPUT_BYTES // outputs, loop_steps or _MOST_BATCHES_A_STACK, _MOST_BATCHES_A_STACK))
