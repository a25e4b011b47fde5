"""Logs the results of an evaluation, and writes them to its event file."""

import logging
import os
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from jaxspec._src.base.arrays import describe_array
from jaxspec._src.summary.writer import SummaryWriter

_logger = logging.getLogger("jaxspec")
_MOST_ENTRIES, _MOST_CHARACTERS = 10, 200


def write_results(results: Mapping[str, object], path: str, writer: SummaryWriter) -> None:
    """Logs the results, and writes those that are numbers. A failure is only a warning: evaluate returns the results anyway.

    Args:
      results: what evaluate returns: `global_step`, an int, and metrics, which may be of any class.
      path: the checkpoint that was evaluated. The event file names it if it exists.
      writer: writes the event file of the evaluation.
    """
    try:
        _write_results(results, path, writer)
    except Exception as error:
        _logger.warning(
            "The results of the evaluation are returned, but could not all be written down: %s: %s",
            *(type(error).__name__, error),
            exc_info=error,
        )


def _write_results(results: Mapping[str, object], path: str, writer: SummaryWriter) -> None:
    step = results["global_step"]
    assert isinstance(step, int)
    shown = ", ".join(f"{name} = {_shown(results[name])}" for name in sorted(results, key=str))
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


def _numbers(value: object) -> np.ndarray | None:
    """The value as an array of numbers or bools, or None if it is none (such as a list of lists of different lengths)."""
    try:
        array = np.asarray(value)
    except Exception:  # whatever a class of the user's raises
        return None
    if jnp.issubdtype(array.dtype, jnp.floating):
        return array.astype(np.float64)  # NumPy's own functions do not know bfloat16
    return array if array.dtype.kind in "biu" else None


def _shown(value: object) -> str:
    """A value of any class, as text for a log line."""
    try:
        is_short = np.asarray(value).size <= _MOST_ENTRIES
        text = str(value) if is_short else describe_array(value)
    except Exception:
        try:
            text = str(value)
        except Exception:
            text = f"<{type(value).__name__}>"
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."
