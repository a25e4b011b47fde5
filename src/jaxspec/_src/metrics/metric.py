"""What a metric function returns for a batch: a small immutable value with `merge` and `compute`.

The state of nearly every metric is a few weighted sums over the examples: `Sums`, in float64.
"""

import abc
import dataclasses
import reprlib
from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, runtime_checkable

import jax
import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike

from jaxspec._src.metrics.arguments import Weights, as_weights
from jaxspec._src.metrics.tally import Tally

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    Result_co = TypeVar("Result_co", covariant=True, default=object)
else:
    from typing import TypeVar

    Result_co = TypeVar("Result_co", covariant=True)

Floats = npt.NDArray[np.float64]


@runtime_checkable
class Mergeable(Protocol):
    """A metric of this library or of another one, such as clu or metrax."""

    def merge(self, other: Self) -> Self:
        """The metric of the examples of both."""

    def compute(self) -> object:
        """The result to report."""


class Metric(abc.ABC, Generic[Result_co]):
    """The state of one metric over some of the examples.

    A metric function makes one from a batch. `merge` joins the states of two sets of examples, and `compute` gives
    the result to report. Merging is associative and has an identity, `metric.empty()`: the state of no examples,
    which the metric function also returns for an empty batch (except `mean_tensor`, which has no batch axis).

    To a type checker, `Metric[float]` is a metric whose `compute()` returns a float.

    A metric is a JAX pytree whose leaves are NumPy arrays; its configuration belongs to the structure. So it can be
    flattened, its leaves sent to another host, rebuilt there with the same structure, and merged. (Send the bytes:
    on the way over a device float64 becomes float32 unless x64 is on, and a count above 2**24 is rounded.)

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
        """The metric of both sets of examples.

        Raises:
          TypeError: if `other` is of another class.
          ValueError: if `other` is another metric, or has another configuration.
        """

    @abc.abstractmethod
    def compute(self) -> Result_co:
        """The number, or array of numbers, to report."""

    @abc.abstractmethod
    def empty(self) -> Self:
        """The metric of no examples, with this one's configuration: the identity of `merge`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Sums(Metric[Any]):
    """A metric whose state is a few arrays that add up: every function of `tf.compat.v1.metrics` is one.

    The constructor checks nothing, because JAX calls it with anything in place of the leaves. Metric functions call
    `sums_of`.

    Attributes:
      sums: float64 arrays, the large ones perhaps as a `Tally`. Float64 counts exactly up to 2**53, and with one dtype
        for weighted and unweighted examples every host sends the same structure.
      name: of the metric function, for errors.
      finish: a pure function at module level (so that it can be pickled and compared): `finish(*sums, **config)`
        is the result.
      config: what changes the result (thresholds, k, ...). Metrics with different configurations do not merge.
    """

    sums: tuple[Floats | Tally, ...]
    name: str
    finish: Callable[..., ArrayLike] = dataclasses.field(repr=False)
    config: tuple[tuple[str, Hashable], ...] = ()

    def merge(self, other: Self) -> Self:
        if not self._can_merge(other):
            raise self._refusal(other)
        # inf - inf is NaN, as it is in one batch, and no reason for a warning.
        with np.errstate(all="ignore"):
            added = [_read_only(a + b) for a, b in zip(self.sums, other.sums, strict=True)]
        return type(self)(tuple(added), self.name, self.finish, self.config)

    def _can_merge(self, other: Self) -> bool:
        return (
            isinstance(other, Sums)
            and (self.name, self.finish, self.config) == (other.name, other.finish, other.config)
            and [s.shape for s in self.sums] == [s.shape for s in other.sums]
        )

    def _refusal(self, other: Self) -> Exception:
        """Why `other` cannot be merged: the error to raise."""
        if not isinstance(other, Sums):
            return TypeError(
                f"{self.name}: cannot merge with {type(other).__name__}; expected a value that {self.name} returned"
            )
        if (self.name, self.finish) != (other.name, other.finish):
            return ValueError(
                f"cannot merge a value of {self.name} with one of {other.name}; expected the same metric on both sides"
            )
        if self.config != other.config:
            theirs = dict(other.config)
            differing = [
                f"{key}={reprlib.repr(value)} with {key}={reprlib.repr(theirs.get(key))}"
                for key, value in self.config
                if theirs.get(key) != value
            ]
            return ValueError(
                f"{self.name}: cannot merge {', '.join(differing)}; expected the same arguments in every batch"
            )
        return ValueError(
            f"{self.name}: cannot merge a state of shapes {[s.shape for s in self.sums]} with one of "
            f"{[s.shape for s in other.sums]}; expected the same shape in every batch"
        )

    def compute(self) -> Any:
        """A float, or an array, as the metric function says."""
        with np.errstate(all="ignore"):
            result = np.asarray(self.finish(*map(np.asarray, self.sums), **dict(self.config)))
        return float(result) if result.ndim == 0 else result

    def empty(self) -> Self:
        return dataclasses.replace(self, sums=_frozen([np.zeros(s.shape) for s in self.sums]))


jax.tree_util.register_pytree_node(
    Sums,
    lambda metric: (_frozen(map(np.asarray, metric.sums)), (metric.name, metric.finish, metric.config)),
    lambda static, sums: Sums(sums, *static),
)


def sums_of(name: str, finish: Callable[..., ArrayLike], *sums: ArrayLike | Tally, **config: Hashable) -> Sums:
    """The metric `name` with these sums over one batch. The arguments are the attributes of `Sums`."""
    return Sums(_frozen(sums), name, finish, tuple(config.items()))


def the_sum(total: Floats) -> Floats:
    """Finishes a metric that is one sum."""
    return np.array(total)


def mean_or_zero(total: Floats, weight: Floats, **config: object) -> np.ndarray:
    """The mean, or 0 where the weight is not positive: TensorFlow's choice for the mean of nothing."""
    return np.where(weight <= 0, 0.0, total / weight)


def mean_of(
    name: str, values: np.ndarray, weights: Weights, finish: Callable[..., ArrayLike] = mean_or_zero, **config: Hashable
) -> Sums:
    """The weighted mean of an array as metric `name`. Its sums are those of `values * weights` and of the weights.

    Args:
      finish: makes the result of both sums.
      config: as in `Sums`.
    """
    w = as_weights(weights, values.shape, allow_negative=True)
    return sums_of(name, finish, total(values, w), total_weight(values, w), **config)


def ratio_or_zero(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """`numerator / denominator`, and 0 wherever the denominator is 0."""
    return np.where(denominator == 0, 0.0, np.divide(numerator, np.where(denominator == 0, 1.0, denominator)))


def total(values: np.ndarray, weights: np.ndarray | None) -> np.float64:
    """Sum of `values` times `weights` (None: all 1)."""
    with np.errstate(all="ignore"):  # inf * 0 and inf - inf are NaN, without a warning
        if weights is not None:
            return np.float64(np.multiply(values, weights, dtype=np.float64).sum())
        return np.float64(np.count_nonzero(values) if values.dtype == bool else values.sum(dtype=np.float64))


def total_weight(values: np.ndarray, weights: np.ndarray | None) -> np.float64:
    """Sum of the weights; None: the number of entries of `values`."""
    return np.float64(values.size if weights is None else weights.sum(dtype=np.float64))


def _frozen(sums: Iterable[ArrayLike | Tally]) -> tuple[Floats | Tally, ...]:
    # Always a copy: a float64 array of the caller must not become read-only, nor change the metric later.
    return tuple(s if isinstance(s, Tally) else _read_only(np.array(s, np.float64)) for s in sums)


def _read_only(sums: Floats | Tally) -> Floats | Tally:
    if isinstance(sums, np.ndarray):
        sums.flags.writeable = False
    return sums
