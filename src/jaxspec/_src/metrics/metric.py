"""What a metric function returns: a small immutable value that merges and computes."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Hashable
from typing import Any, Self

import jax
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Result = float | Array


class Metric(abc.ABC):
    """The state of one metric over some of the examples.

    A metric function makes one from a batch; `merge` joins the values of two sets of examples; `compute`
    gives the number to report. Merging is associative and has an identity, `value.empty()`: the state of no
    examples, equal to what the metric function returns for an empty batch (`mean_tensor` has no batch axis).

    A value is a JAX pytree whose leaves are NumPy arrays and whose structure holds the configuration. So it
    can be flattened, its leaves sent to another host, rebuilt there with the same structure and merged. (Send
    the bytes: a trip over a device makes float32 of float64 unless x64 is on, and a count past 2**24 is then
    rounded.)

    >>> from jaxspec import metrics
    >>> first = metrics.accuracy(labels=[1, 0], predictions=[1, 1])
    >>> second = metrics.accuracy(labels=[2], predictions=[2])
    >>> round(first.merge(second).compute(), 4)
    0.6667
    >>> first.merge(first.empty()).compute()
    0.5
    """

    @abc.abstractmethod
    def merge(self, other: Self) -> Self:
        """The value of both sets of examples. ValueError if `other` is of another metric or configuration."""

    @abc.abstractmethod
    def compute(self) -> Any:
        """The number, or array of numbers, to report."""

    @abc.abstractmethod
    def empty(self) -> Self:
        """The value of no examples: the identity of `merge`, with this value's configuration."""


@dataclasses.dataclass(frozen=True, eq=False)
class Sums(Metric):
    """A metric whose state is a few arrays that add up: every function of `tf.compat.v1.metrics` is one.

    The constructor checks nothing, for JAX calls it with whatever stands for the leaves. Metric functions
    use `sums_of`.

    Attributes:
      sums: float64 arrays. Float64 counts exactly up to 2**53, and one dtype for weighted and unweighted
        examples means that every host sends the same structure.
      name: of the metric function, for errors.
      finish: pure, at module level (so that it pickles and compares): `finish(*sums, **config)` is the
        result.
      config: what shapes the result (thresholds, k, ...). Values with different configurations do not merge.
    """

    sums: tuple[Floats, ...]
    name: str
    finish: Callable[..., Any] = dataclasses.field(repr=False)
    config: tuple[tuple[str, Hashable], ...] = ()

    def merge(self, other: Self) -> Self:
        if not isinstance(other, Sums):
            raise TypeError(
                f"{self.name}: cannot merge with {type(other).__name__}; expected a value that {self.name} returned"
            )
        if (self.name, self.finish) != (other.name, other.finish):
            raise ValueError(
                f"cannot merge a value of {self.name} with one of {other.name}; expected the same metric on both sides"
            )
        if self.config != other.config:
            differing = [
                f"{key}={_shorten(mine)} with {key}={_shorten(dict(other.config).get(key))}"
                for key, mine in self.config
                if dict(other.config).get(key) != mine
            ]
            raise ValueError(
                f"{self.name}: cannot merge {', '.join(differing)}; expected the same arguments in every batch"
            )
        mine, theirs = [np.shape(s) for s in self.sums], [np.shape(s) for s in other.sums]
        if mine != theirs:
            raise ValueError(
                f"{self.name}: cannot merge a state of shapes {mine} with one of {theirs}; "
                "expected the same shape in every batch"
            )
        # inf - inf is NaN, as it is in one batch, and no reason for a warning.
        with np.errstate(all="ignore"):
            added = [np.add(a, b) for a, b in zip(self.sums, other.sums, strict=True)]
        return dataclasses.replace(self, sums=_frozen(added))

    def compute(self) -> Result:
        with np.errstate(all="ignore"):
            result = np.asarray(self.finish(*self.sums, **dict(self.config)))
        return float(result) if result.ndim == 0 else result

    def empty(self) -> Self:
        return dataclasses.replace(self, sums=_frozen([np.zeros_like(s) for s in self.sums]))


jax.tree_util.register_dataclass(Sums, data_fields=["sums"], meta_fields=["name", "finish", "config"])


def sums_of(name: str, finish: Callable[..., Any], *sums: npt.ArrayLike, **config: Hashable) -> Sums:
    """The value of metric `name` with these sums over one batch."""
    return Sums(_frozen(sums), name, finish, tuple(config.items()))


def _frozen(sums: Any) -> tuple[Floats, ...]:
    # A copy, always: a float64 array of the caller must not become read-only, nor change the value later.
    arrays = tuple(np.array(s, np.float64) for s in sums)
    for array in arrays:
        array.flags.writeable = False
    return arrays


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:50]}... ({len(text)} characters)"
