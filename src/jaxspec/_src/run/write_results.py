"""The results of an evaluation, logged and written."""

import functools
import logging
import os
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from jaxspec._src.base.arrays import describe_array
from jaxspec._src.base.types import Metrics
from jaxspec._src.run.run_writers import warn_not_written
from jaxspec._src.summary.writer import SummaryWriter

_logger = logging.getLogger("jaxspec")
_MOST_ENTRIES, _MOST_CHARACTERS = 10, 200


def write_results(results: Metrics, path: str, writer: SummaryWriter) -> None:
    """Logs the results, and writes those that are numbers. An error in this is a warning: the results are to be returned.

    Args:
      results: what evaluate returns, with `global_step`; the other values may be anything.
      path: of the checkpoint that was evaluated; it is written, too, if it exists.
      writer: of the evaluation.
    """
    try:
        _write_results(results, path, writer)
    except Exception as error:
        warn_not_written(error)


def _write_results(results: Metrics, path: str, writer: SummaryWriter) -> None:
    step = results["global_step"]
    names = sorted(results, key=str)
    shown = ", ".join(f"{name} = {_shown(results[name])}" for name in names)
    _logger.info("Saving dict for global step %d: %s", step, shown)
    writes: list[Callable[[], None]] = []
    for name, value in results.items():
        if name == "global_step":
            continue
        if (array := _numbers(value)) is not None:
            writes.append(functools.partial(writer.array, str(name), array, step))
        else:
            _logger.warning(
                "Skipping summary for %s: it is no number and no array of numbers, but %s. It is returned as it is.",
                *(name, type(value)),
            )
    if os.path.isdir(path):
        _logger.info("Saving 'checkpoint_path' summary for global step %d: %s", step, path)
        writes.append(functools.partial(writer.text, "checkpoint_path", path, step))
    errors: list[Exception] = []
    for write in writes:
        try:
            write()
        except Exception as error:  # the others are written all the same
            errors.append(error)
    if errors:
        raise errors[0]


def _numbers(value: object) -> np.ndarray | None:
    """The value as an array of numbers or bools; None if it is none, such as a list of lists of several lengths."""
    try:
        array = np.asarray(value)
    except Exception:  # of whatever class the value is
        return None
    if jnp.issubdtype(array.dtype, jnp.floating):
        return array.astype(np.float64)  # bfloat16 and its kin are no NumPy numbers
    return array if array.dtype.kind in "biu" else None


def _shown(value: object) -> str:
    """A value in a log line, whatever it is."""
    try:
        array = np.asarray(value)
        is_short = array.ndim == 0 or array.size <= _MOST_ENTRIES
        text = str(value) if is_short else describe_array(value)
    except Exception:
        try:
            text = str(value)
        except Exception:
            text = f"<{type(value).__name__}>"
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."
