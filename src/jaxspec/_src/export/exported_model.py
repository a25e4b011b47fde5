"""A model as functions of arrays by name: what an export computes, before it is traced."""

from collections.abc import Callable, Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec._src.base.arrays import is_key, key_data, named_leaves
from jaxspec._src.base.types import Array, PyTree, Variables
from jaxspec._src.checkpoint.parts import key_impl
from jaxspec._src.export.receiver import ServingInputReceiver
from jaxspec._src.step.inference_step import make_export_step
from jaxspec._src.step.model import Model
from jaxspec._src.step.state import TrainState


class SignaturesFunction(Protocol):
    """What the signatures of a model compute; traceable. All arrays are by name, the outputs by signature, too."""

    def __call__(
        self, weights: Mapping[str, Array], inputs: Mapping[str, Array], rng_data: Array = ...
    ) -> dict[str, dict[str, Array]]: ...


class ExportedModel:
    """The signatures of a model.

    Args:
      model: the model_fn with its hyper-parameters.
      state: with the weights, on one device.
      receiver: what callers pass.

    Attributes:
      step: the global step of the weights.
      device: where the state is.
      weights: all variables by the names that they have in a checkpoint. Random keys are their data.
      inputs: the specs of what callers pass, by name.
      rng_data: of the key that model_fn draws from.
    """

    def __init__(self, model: Model, state: TrainState, receiver: ServingInputReceiver) -> None:
        self.model, self._receiver = model, receiver
        self.step = int(state.step)
        (self.device,) = state.step.devices()
        self.rng_data, self._rng_impl = np.asarray(jax.random.key_data(state.rng)), jax.random.key_impl(state.rng)
        self._nested = "opt_state" in state.variables
        variables = {"variables": state.variables} if self._nested else state.variables
        tree: PyTree = {**variables, "opt_state": state.opt_state}
        leaves, self._structure = jax.tree.flatten(tree)
        self._key_impls = [key_impl(leaf) if is_key(leaf) else None for leaf in leaves]
        self.weights: dict[str, jax.Array] = named_leaves(key_data(tree))
        self.inputs = receiver.specs()

    def function(self) -> SignaturesFunction:
        """A new function of the model; without a key, it draws the numbers of the first batch that predict takes."""
        # A model of its own: the kinds of arguments that it is traced for are no reason to warn.
        step = make_export_step(Model(self.model.model_fn, self.model.params, self.model.config))

        def run(
            weights: Mapping[str, Array], inputs: Mapping[str, Array], rng_data: Array = self.rng_data
        ) -> dict[str, dict[str, Array]]:
            variables, opt_state = self._taken_apart([weights[name] for name in self.weights])
            rng = jax.random.wrap_key_data(jnp.asarray(rng_data), impl=self._rng_impl)
            return step(TrainState(jnp.int32(self.step), variables, opt_state, rng), self._receiver.features_of(inputs))

        return run

    def signature_function(self, name: str) -> Callable[[Mapping[str, Array], Mapping[str, Array]], dict[str, Array]]:
        """What one signature computes of `(weights, inputs)`."""
        run = self.function()

        def one(weights: Mapping[str, Array], inputs: Mapping[str, Array]) -> dict[str, Array]:
            return run(weights, inputs)[name]

        return one

    def weight_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes and dtypes of the weights."""
        return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in self.weights.items()}

    def _taken_apart(self, leaves: list[Array]) -> tuple[Variables, PyTree]:
        """(variables, optimizer state) of arrays in the order of `weights`."""
        pairs = zip(leaves, self._key_impls, strict=True)
        with_keys = [
            leaf if impl is None else jax.random.wrap_key_data(jnp.asarray(leaf), impl=impl) for leaf, impl in pairs
        ]
        tree = dict(jax.tree.unflatten(self._structure, with_keys))
        opt_state = tree.pop("opt_state")
        return (tree["variables"] if self._nested else tree), opt_state
