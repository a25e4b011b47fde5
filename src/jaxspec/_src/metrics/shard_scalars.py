"""A scalar of each shard, on the host, with the number of rows behind each: what makes its mean right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxspec._src.metrics.metric import Array

_MEND = (
    "give metric_fn one value for each row instead: jnp.broadcast_to(x, features.shape[:1]) in model_fn; or a sum and a "
    "count, x[None]"
)


class ShardScalars(np.ndarray):
    """A scalar tensor of evaluation as host functions get it: one entry for each shard, and `rows`, the rows behind each.

    Shards differ in rows where a batch is short, so its mean (`x.mean()`, `np.mean(x)`, `np.average(x)`,
    `jaxspec.metrics.mean(x)`) weights the entries by them. Arithmetic keeps them. Sums, minima, maxima, comparisons and
    everything else see the entries alone, as in a plain array; `np.asarray(x)` is one. Standard deviations and
    quantiles are refused.

    Args:
      entries: `[shards]`.
      rows: integers `[shards]`.
    """

    rows: Array | None

    def __new__(cls, entries: Array, rows: Array) -> ShardScalars:
        self = np.asarray(entries).view(cls)
        self.rows = rows
        return self

    def __array_finalize__(self, obj: Any) -> None:
        same = isinstance(obj, ShardScalars) and obj.shape == self.shape
        self.rows = obj.rows if same else None

    def __getitem__(self, index: Any) -> Any:
        entries = super().__getitem__(index)
        if isinstance(entries, ShardScalars) and entries.ndim == 1 and self.rows is not None:
            entries.rows = self.rows[index]
        return entries

    def weights(self) -> Array:
        """The rows behind each entry; TypeError where they are not known any more."""
        if self.rows is None or self.shape != self.rows.shape:
            raise TypeError(
                f"a scalar of each shard has become an array of shape {self.shape}, and its entries have unequal numbers of "
                f"rows behind them, so it has no mean; take the mean of the scalars themselves, or {_MEND}"
            )
        return self.rows

    def mean(self, axis: Any = None, dtype: Any = None, out: Any = None, **kwargs: Any) -> Any:
        """The mean over the rows."""
        mean = np.average(_plain(self).astype(np.float64), axis, self.weights(), **kwargs)
        if dtype is None and np.result_type(self.dtype).kind not in "biu":
            dtype = self.dtype
        if out is not None:
            out[...] = mean
            return out
        return mean if dtype is None else mean.astype(dtype)

    def std(self, *args: Any, **kwargs: Any) -> Any:
        """Refused."""
        raise _refused("std")

    def var(self, *args: Any, **kwargs: Any) -> Any:
        """Refused."""
        raise _refused("var")

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **kwargs: Any) -> Any:
        if out is not None:
            kwargs["out"] = _plain(out)
        result = getattr(ufunc, method)(*_plain(inputs), **_plain(kwargs))
        if out is not None:
            return out[0] if len(out) == 1 else out
        rows = next((x.rows for x in inputs if isinstance(x, ShardScalars)), None)
        if method != "__call__" or rows is None:
            return result
        return tuple(_like(x, rows) for x in result) if isinstance(result, tuple) else _like(result, rows)

    def __array_function__(self, func: Callable[..., Any], types: Any, args: Any, kwargs: Any) -> Any:
        if func in _REFUSED:
            raise _refused(func.__name__)
        if func in (np.mean, np.nanmean) and isinstance(args[0], ShardScalars) and len(args) == 1:
            values = args[0]
            return (values[~np.isnan(_plain(values))] if func is np.nanmean else values).mean(**kwargs)
        if func is np.average and isinstance(args[0], ShardScalars) and len(args) == 1 and not kwargs:
            return args[0].mean()
        result = func(*_plain(args), **_plain(kwargs))
        if func is np.concatenate and all(isinstance(x, ShardScalars) for x in args[0]):
            return ShardScalars(result, np.concatenate([x.weights() for x in args[0]]))
        return _like(result, self.rows) if func in _ELEMENTWISE and self.rows is not None else result


_ELEMENTWISE = {np.where, np.clip, np.round, np.nan_to_num, np.copy}
_REFUSED = {np.std, np.var, np.nanstd, np.nanvar, np.median, np.nanmedian, np.percentile, np.quantile, np.nanpercentile}
_REFUSED |= {np.nanquantile, np.histogram, np.cov, np.corrcoef}


def _refused(name: str) -> TypeError:
    return TypeError(
        f"{name} of a scalar of each shard: there is one entry for each shard, with unequal numbers of rows behind them; {_MEND}"
    )


def _plain(x: Any) -> Any:
    """`x` with plain arrays in the place of shard scalars."""
    if isinstance(x, ShardScalars):
        return x.view(np.ndarray)
    if isinstance(x, tuple | list):
        return type(x)(map(_plain, x))
    return {key: _plain(value) for key, value in x.items()} if isinstance(x, dict) else x


def _like(x: Any, rows: Array) -> Any:
    return ShardScalars(x, rows) if isinstance(x, np.ndarray) and x.shape == rows.shape else x


def refuse_shard_scalars(name: str, value: Any) -> None:
    """Raises TypeError where the metric cannot use the rows behind each entry."""
    if isinstance(value, ShardScalars):
        raise TypeError(
            f"{name} is a scalar of each shard, with unequal numbers of rows behind its entries, which this metric does not "
            f"know of; {_MEND}. (jaxspec.metrics.mean knows of them; numpy.asarray({name}) is the entries alone)"
        )
