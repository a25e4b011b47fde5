"""Which methods of an input report its position and set it."""

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, NamedTuple, Protocol, TypeVar

from jaxspec._src.data.position import PositionState

Element = TypeVar("Element", covariant=True)


class CheckpointableIterator(Iterator[Element], Protocol[Element]):
    """An iterator that reports its position, so that training goes on with the batch that follows.

    Iterators of Grain and of `numpy_input_fn` are such iterators. It may have a method `fingerprint` besides: see
    `TPUEstimator.train`, `resume_input`. Instead of these two methods there may be `state_dict` and `load_state_dict`,
    which a loader may have in place of its iterator, as torchdata's `StatefulDataLoader`.
    """

    def get_state(self) -> PositionState:
        """The position after the last batch. Called after each batch of a training."""

    def set_state(self, state: PositionState) -> None:
        """Goes on at a position that `get_state` returned; ValueError refuses it, and the input begins anew."""


class PositionMethods(NamedTuple):
    """The two methods of an input that reports its position."""

    get: Callable[[], PositionState]
    set: Callable[[PositionState], None]
    get_name: str
    set_name: str


def position_methods(source: object) -> PositionMethods | None:
    """`get_state` and `set_state` of an input, or `state_dict` and `load_state_dict`; None if it has neither pair."""
    for names in (("get_state", "set_state"), ("state_dict", "load_state_dict")):
        if all(callable(getattr(source, name, None)) for name in names):
            return PositionMethods(getattr(source, names[0]), getattr(source, names[1]), *names)
    return None


class LoaderBatches(Generic[Element]):
    """The batches of a loader that has `state_dict` and `load_state_dict` itself, as torchdata's StatefulDataLoader.

    Such a loader makes an iterator that goes on at the position that was set before. So the iterator is made as late as
    possible, and again after `load_state_dict`.
    """

    def __init__(self, loader: Iterable[Element], methods: PositionMethods) -> None:
        self.loader = loader
        self._methods = methods
        self._iterator: Iterator[Element] | None = None

    def __iter__(self) -> "LoaderBatches[Element]":
        return self

    def __next__(self) -> Element:
        if self._iterator is None:
            self._iterator = iter(self.loader)
        return next(self._iterator)

    def state_dict(self) -> PositionState:
        """The position after the last batch."""
        return self._methods.get()

    def load_state_dict(self, state: PositionState) -> None:
        """Goes on at a position that `state_dict` returned."""
        self._iterator = None
        self._methods.set(state)
