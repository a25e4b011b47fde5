"""The results of an evaluation, logged and written to its event file."""

import logging
import os
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxspec._src.base.arrays import describe_array
from jaxspec._src.summary.writer import SummaryWriter

_logger = logging.getLogger("jaxspec")
_MOST_ENTRIES, _MOST_CHARACTERS = 10, 200


def write_results(results: Mapping[str, Any], path: str, writer: SummaryWriter) -> None:
    """Logs the results, and writes those that are numbers. Whatever goes wrong is a warning: the results are to be returned.

    Args:
      results: what evaluate returns, with `global_step`; the other values may be anything.
      path: of the checkpoint behind them; it is named in the event file if it exists.
      writer: of the evaluation's event file.
    """
    try:
        _write_results(results, path, writer)
    except Exception as error:
        _logger.warning(
            "The results of the evaluation are returned, but could not all be written down: %s: %s",
            *(type(error).__name__, error),
            exc_info=error,
        )


def _write_results(results: Mapping[str, Any], path: str, writer: SummaryWriter) -> None:
    step = results["global_step"]
    names = sorted(results, key=str)
    shown = ", ".join(f"{name} = {_shown(results[name])}" for name in names)
    _logger.info("Saving dict for global step %d: %s", step, shown)
    for name, value in results.items():
        if name == "global_step":
            continue
        if (array := _numbers(value)) is not None:
            writer.array(str(name), array, step)
        else:
            _logger.warning(
                "Skipping summary for %s: it is no number and no array of numbers, but %s. It is returned as it is.",
                *(name, type(value)),
            )
    if os.path.isdir(path):
        _logger.info("Saving 'checkpoint_path' summary for global step %d: %s", step, path)
        writer.text("checkpoint_path", path, step)
    writer.flush()


def _numbers(value: Any) -> np.ndarray | None:
    """The value as an array of numbers or bools; None if it is none, such as a list of lists of several lengths."""
    try:
        array = np.asarray(value)
    except Exception:  # of whatever class the value is
        return None
    if jnp.issubdtype(array.dtype, jnp.floating):
        return array.astype(np.float64)  # bfloat16 and its kin are no NumPy numbers
    return array if array.dtype.kind in "biu" else None


def _shown(value: Any) -> str:
    """A value in a log line, whatever it is."""
    try:
        is_short = np.ndim(value) == 0 or np.size(value) <= _MOST_ENTRIES
        text = str(value) if is_short else describe_array(value)
    except Exception:
        try:
            text = str(value)
        except Exception:
            text = f"<{type(value).__name__}>"
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."
