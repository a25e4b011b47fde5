"""ShardScalars: a scalar tensor of each shard, on the host, whose mean is weighted by the rows of each shard."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from jaxspec._src.base.types import AnyFunction

_INSTEAD = (
    "give metric_fn one value for each row instead: jnp.broadcast_to(x, features.shape[:1]) in model_fn; or a sum and "
    "a count, x[None]"
)


class ShardScalars(np.ndarray):
    """A scalar tensor of an evaluation as host functions get it: one entry for each shard.

    The shards of a short batch differ in rows, so the mean (`x.mean()`, `np.mean(x)`, `np.average(x)`,
    `jaxspec.metrics.mean(x)`) weights the entries by their rows. The result of arithmetic has the same rows. Sums,
    minima, maxima and everything else use the entries alone, as for a plain array; `np.asarray(x)` is that array.
    Standard deviations and quantiles are refused.

    Args:
      entries: `[shards]`.
      rows: integers `[shards]`, the number of rows of each shard.
    """

    rows: np.ndarray | None

    def __new__(cls, entries: np.ndarray, rows: np.ndarray) -> ShardScalars:
        self = np.asarray(entries).view(cls)
        self.rows = rows
        return self

    def __array_finalize__(self, obj: object) -> None:
        self.rows = obj.rows if isinstance(obj, ShardScalars) and obj.shape == self.shape else None

    def __getitem__(self, index: Any) -> Any:
        entries = super().__getitem__(index)
        if isinstance(entries, ShardScalars) and entries.ndim == 1 and self.rows is not None:
            entries.rows = self.rows[index]
        return entries

    def weights(self) -> np.ndarray:
        """The rows of each entry, or a TypeError if they are no longer known."""
        if self.rows is None or self.shape != self.rows.shape:
            raise TypeError(
                f"a scalar of each shard has become an array of shape {self.shape}, and the numbers of rows of its "
                f"entries are not known, so it has no mean; take the mean of the scalars themselves, or {_INSTEAD}"
            )
        return self.rows

    def mean(self, axis: Any = None, dtype: Any = None, out: Any = None, **kwargs: Any) -> Any:
        """The mean over the rows of all shards."""
        mean = np.average(_plain(self).astype(np.float64), axis, self.weights(), **kwargs)
        if dtype is None and np.result_type(self.dtype).kind not in "biu":
            dtype = self.dtype
        if out is not None:
            out[...] = mean
            return out
        return mean if dtype is None else mean.astype(dtype)

    def std(self, *args: object, **kwargs: object) -> NoReturn:
        """Raises a TypeError."""
        raise _refused("std")

    def var(self, *args: object, **kwargs: object) -> NoReturn:
        """Raises a TypeError."""
        raise _refused("var")

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: object, out: Any = None, **kwargs: object) -> Any:
        if out is not None:
            kwargs["out"] = _plain(out)
        result = getattr(ufunc, method)(*_plain(inputs), **_plain(kwargs))
        if out is not None:
            return out[0] if len(out) == 1 else out
        rows = next((x.rows for x in inputs if isinstance(x, ShardScalars)), None)
        if method != "__call__" or rows is None:
            return result
        return tuple(_like(x, rows) for x in result) if isinstance(result, tuple) else _like(result, rows)

    def __array_function__(self, func: AnyFunction, types: object, args: Any, kwargs: Any) -> Any:
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
        f"{name} of a scalar of each shard is not that of the rows, because shards may have unequal numbers of rows; "
        f"{_INSTEAD}"
    )


def _plain(x: object) -> Any:
    """`x` with plain arrays in place of `ShardScalars`."""
    if isinstance(x, ShardScalars):
        return x.view(np.ndarray)
    if isinstance(x, tuple | list):
        return type(x)(map(_plain, x))
    return {key: _plain(value) for key, value in x.items()} if isinstance(x, dict) else x


def _like(x: object, rows: np.ndarray) -> object:
    return ShardScalars(x, rows) if isinstance(x, np.ndarray) and x.shape == rows.shape else x


def refuse_shard_scalars(name: str, value: object) -> None:
    """Raises a TypeError for `ShardScalars`: for metrics that cannot use the rows of each entry."""
    if isinstance(value, ShardScalars):
        raise TypeError(
            f"{name} is a scalar of each shard, and this metric cannot weight the shards by their numbers of rows; "
            f"{_INSTEAD}. (jaxspec.metrics.mean does it; numpy.asarray({name}) has the entries alone)"
        )
