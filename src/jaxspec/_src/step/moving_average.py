"""Moving averages of variables, kept in a separate collection."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxspec._src.base.types import AnyFunction, Array, Batch, HyperParameters, PyTree, Variables
from jaxspec._src.step.init import InitFn, as_init_fn

COLLECTION = "ema"


class ExponentialMovingAverage:
    """Keeps `average = decay * average + (1 - decay) * value` of collections, in the collection `ema`.

        ema = ExponentialMovingAverage(0.999)
        TPUEstimator(model_fn, init_fn=ema.init(Net()), ...)
        # in model_fn
        if mode != ModeKeys.TRAIN: variables = ema.apply(variables)
        ... train_op=minimize(optimizer, after=ema.update(step))

    Args:
      decay: between 0 and 1.
      of: the collections that are averaged.
    """

    def __init__(self, decay: float, of: Sequence[str] = ("params",)) -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"ExponentialMovingAverage: decay must be between 0 and 1, given: {decay}.")
        self.decay = decay
        self.of = (of,) if isinstance(of, str) else tuple(of)

    def init(self, init_fn: InitFn) -> AnyFunction:
        """An init_fn that makes what `init_fn` (a function or a Flax Module) makes, and averages that are equal to
        it."""
        make = as_init_fn(init_fn)

        def init_with_averages(rng: jax.Array, features: Batch, labels: Batch, params: HyperParameters) -> Variables:
            variables = make(rng=rng, features=features, labels=labels, params=params)
            return {**variables, COLLECTION: {name: variables[name] for name in self.of}}

        return init_with_averages

    def update(self, step: Array | int | None = None) -> Callable[[Variables], Variables]:
        """An `after` for `minimize`.

        Args:
          step: what TensorFlow calls num_updates. The decay is then `min(decay, (1 + step) / (10 + step))`: the
            averages follow quickly at first. A train_op of TensorFlow has counted the step by then: for its averages
            pass the global step that model_fn is given, plus 1.
        """
        return _Update(self, step)

    def apply(self, variables: Variables) -> dict[str, PyTree]:
        """The variables with the averages in place of the values."""
        averages = _averages_of(variables)
        return {**variables, **{name: averages[name] for name in self.of}}


def _averages_of(variables: Variables) -> Variables:
    if COLLECTION not in variables:
        raise ValueError(
            f"ExponentialMovingAverage: the variables have no collection {COLLECTION!r}, only "
            f"{sorted(variables)}; make it with init_fn=ema.init(init_fn)."
        )
    averages: Variables = variables[COLLECTION]
    return averages


class _Update:
    """An `after` that returns the same on every shard, so that nothing needs to be reduced."""

    same_on_all_shards = True

    def __init__(self, ema: ExponentialMovingAverage, step: Array | int | None) -> None:
        self.ema = ema
        self.step = step

    def __call__(self, variables: Variables) -> Variables:
        averages = _averages_of(variables)
        decay: float | jax.Array = self.ema.decay
        if self.step is not None:
            step = jnp.asarray(self.step, jnp.float32)
            decay = jnp.minimum(decay, (1 + step) / (10 + step))

        def blend(average: jax.Array, value: jax.Array) -> jax.Array:
            if not jnp.issubdtype(average.dtype, jnp.inexact):
                return value
            # In this form a constant value stays exactly constant.
            return average - jnp.asarray(1 - decay, average.dtype) * (average - value.astype(average.dtype))

        values = {name: variables[name] for name in self.ema.of}
        return {COLLECTION: jax.tree.map(blend, averages, values)}
