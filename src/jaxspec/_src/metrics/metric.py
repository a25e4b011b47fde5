"""What a metric function returns for a batch: a small immutable value with `merge` and `compute`."""

import abc
from typing import TYPE_CHECKING, Generic, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    Result_co = TypeVar("Result_co", covariant=True, default=object)
else:
    from typing import TypeVar

    Result_co = TypeVar("Result_co", covariant=True)


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
