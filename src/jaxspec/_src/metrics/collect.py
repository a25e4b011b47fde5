"""collect: gathers all examples of an evaluation, and calls a function of the user on them at the end."""

import collections
import dataclasses
import functools
import logging
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Self, TypeVar

import jax
import numpy as np
from numpy.typing import ArrayLike

from jaxspec._src.base.callables import describe
from jaxspec._src.base.types import AnyFunction
from jaxspec._src.metrics.metric import Mergeable, Metric
from jaxspec._src.metrics.shard_scalars import refuse_shard_scalars

_logger = logging.getLogger("jaxspec")

R = TypeVar("R")
_Arrays = tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Collected(Metric[R]):
    """Every example so far, in order, and the function to call with them.

    Merging keeps the order: `a.merge(b)` holds a's examples, then b's. So it is associative, but not commutative.

    As a pytree it has one leaf for each tensor, with its batches joined.

    Attributes:
      fn: called as `fn(**tensors)`.
      names: of the tensors.
      parts: for each name its arrays, batch by batch.
    """

    fn: Callable[..., R]
    names: tuple[str, ...]
    parts: tuple[_Arrays, ...] = dataclasses.field(repr=False)

    def merge(self, other: Self) -> Self:
        if not isinstance(other, Collected):
            raise TypeError(f"collect: cannot merge with {type(other).__name__}; expected a value of collect")
        if not _same(self.fn, other.fn):
            raise ValueError(
                f"collect: cannot merge examples for {describe(self.fn)} with examples for {describe(other.fn)}; "
                "expected the same function in every batch"
            )
        if self.names != other.names:
            raise ValueError(
                f"collect: cannot merge tensors {list(self.names)} with {list(other.names)}; "
                "expected the same tensors in every batch"
            )
        for name, mine, theirs in zip(self.names, self.parts, other.parts, strict=True):
            if mine[-1].shape[1:] != theirs[0].shape[1:]:
                raise ValueError(
                    f"collect: {name} has examples of shape {mine[-1].shape[1:]} in one batch and "
                    f"{theirs[0].shape[1:]} in another; expected one shape (pad them)"
                )
        return dataclasses.replace(self, parts=tuple(map(operator.add, self.parts, other.parts)))

    def compute(self) -> R:
        """What `fn` returns for all examples."""
        return self.fn(**{name: _join(arrays) for name, arrays in zip(self.names, self.parts, strict=True)})

    def empty(self) -> Self:
        return dataclasses.replace(self, parts=tuple((_join(arrays)[:0],) for arrays in self.parts))


def collect(fn: Callable[..., R], /, **tensors: ArrayLike) -> Collected[R]:
    """Calls `fn` with every example of the evaluation, once, at the end, in order.

    For results that do not add up over batches: a rank correlation, BLEU, a figure.

    Args:
      fn: called as `fn(**tensors)` by `compute`, with the batches of each tensor concatenated along the first axis. It
        may return anything: a number, an array, a figure. If metric_fn returns the metric as `rouge` and `fn` returns
        the dict `{"1": x, "L": y}`, `evaluate` reports `rouge/1` and `rouge/L`, and likewise for a dict in it. A lambda
        that metric_fn makes is allowed: that of the first batch is called, for all batches.
      **tensors: arrays `[B, ...]` under the names of fn's arguments. They are copied.

    Returns:
      A metric that computes what `fn` returns. It holds all examples in host memory: 1,000,000 float32 scores take
      4 MB, and as many rows of 1,000 logits take 4 GB.

    There is no such function in TensorFlow.

    >>> import numpy as np
    >>> from jaxspec import metrics
    >>> def median_error(labels, predictions):
    ...     return float(np.median(np.abs(labels - predictions)))
    >>> first = metrics.collect(median_error, labels=np.array([1.0, 2.0]), predictions=np.array([1.0, 4.0]))
    >>> second = metrics.collect(median_error, labels=np.array([3.0]), predictions=np.array([2.5]))
    >>> first.merge(second).compute()
    0.5
    """
    if not callable(fn):
        raise TypeError(f"fn is {fn!r}; expected a function of the collected tensors")
    if not tensors:
        raise ValueError("collect got no tensors; expected at least one, under the name of an argument of fn")
    parts: list[_Arrays] = []
    for name, tensor in tensors.items():
        refuse_shard_scalars(name, tensor)
        is_masked = isinstance(tensor, np.ma.MaskedArray)
        array: np.ndarray = np.ma.copy(tensor) if is_masked else np.array(tensor)
        if array.ndim == 0:
            raise ValueError(f"{name} is a scalar; expected an array with one entry for each example")
        if not is_masked:
            array.flags.writeable = False
        parts.append((array,))
    return Collected(fn, tuple(tensors), tuple(parts))


def computed(metrics: Mapping[str, Mergeable]) -> dict[str, object]:
    """The results by name. Each key of a dict that a function of `collect` returned is one, `name/key`; of a dict in
    it, `name/key/key`.

    If two results have such a name, a warning says so, and the dict stays one result.
    """
    results: dict[str, object] = {}
    for name, metric in metrics.items():
        named = {name: (value := metric.compute())}
        if isinstance(metric, Collected) and isinstance(value, Mapping):
            parts = list(_parts(name, value))
            counts = collections.Counter([*(part for part, _ in parts), *{*metrics, *results}])
            if taken := sorted({part for part, _ in parts if counts[part] > 1}):
                _logger.warning(
                    "The function of collect under %r returned a dict, which stays one result: metric_fn has another "
                    "metric named %s. Rename it.",
                    *(name, ", ".join(taken)),
                )
            else:
                named = dict(parts)
        results |= named
    return results


def _parts(name: str, value: object) -> Iterator[tuple[str, object]]:
    """Yields (name, result) for the keys of nested dicts."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _parts(f"{name}/{key}", part)
    else:
        yield name, value


def _join(arrays: _Arrays) -> np.ndarray:
    if len(arrays) == 1:
        return arrays[0]
    module = np.ma if any(isinstance(a, np.ma.MaskedArray) for a in arrays) else np
    return np.asanyarray(module.concatenate(arrays))


def _same(fn: AnyFunction, other: AnyFunction) -> bool:
    # A lambda that metric_fn makes is a new object for each batch, with the same code.
    if isinstance(fn, functools.partial) and isinstance(other, functools.partial):
        return _same(fn.func, other.func) and (fn.args, fn.keywords) == (other.args, other.keywords)
    code = getattr(fn, "__code__", None)
    return fn == other or (code is not None and code is getattr(other, "__code__", None))


jax.tree_util.register_pytree_node(
    Collected,
    lambda metric: (tuple(_join(arrays) for arrays in metric.parts), (metric.fn, metric.names)),
    lambda structure, leaves: Collected(*structure, tuple((leaf,) for leaf in leaves)),
)
