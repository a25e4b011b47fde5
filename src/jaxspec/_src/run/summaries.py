"""The summaries of a run: its writer, with the sinks of `RunConfig(writers=...)`, and the results of an evaluation."""

import contextlib
import logging
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from jaxspec._src.base.arrays import describe_array
from jaxspec._src.base.types import Metrics
from jaxspec._src.checkpoint import checksums
from jaxspec._src.device.processes import is_first_process
from jaxspec._src.run.config import RunConfig
from jaxspec._src.summary.writer import SummaryWriter, create_file_writer, flush_buckets

_logger = logging.getLogger("jaxspec")
_MOST_ENTRIES, _MOST_CHARACTERS = 10, 200


@contextlib.contextmanager
def run_writer(config: RunConfig, logdir: str) -> Iterator[SummaryWriter]:
    """The writer of a training or an evaluation, whose file is flushed and closed on leaving.

    Args:
      config: its writers are the sinks, in process 0. In them, the tags of an evaluation begin with the name of its
        directory.
      logdir: the directory of the event file: the model_dir, or the directory of an evaluation in it.
    """
    assert config.model_dir is not None
    name = logdir.removeprefix(config.model_dir).strip("/")
    prefix = f"{name}/" if name else ""
    writer = create_file_writer(logdir).with_sinks(config.writers if is_first_process() else (), prefix=prefix)
    try:
        yield writer
    except BaseException as error:
        try:
            writer.release()
            flush_buckets()
        except Exception as another:  # the first error is the one to raise
            error.add_note(f"and then, of a summary writer: {type(another).__name__}: {another}")
        raise
    try:
        writer.release()
        flush_buckets()
    except Exception as error:
        _warn_not_written(error)


def _warn_not_written(error: Exception) -> None:
    """Warns that summaries were lost: what was computed is returned although it could not be written down."""
    said = "; ".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])
    _logger.warning("The results are returned, but not all summaries could be written: %s.", said, exc_info=error)


def write_results(results: Metrics, path: str, writer: SummaryWriter) -> None:
    """Logs the results, and writes those that are numbers. An error in this is a warning: the results are to be
    returned.

    Args:
      results: what evaluate returns, with `global_step`; the other values may be anything.
      path: of the checkpoint that was evaluated; it is written, too, if it exists.
      writer: of the evaluation.
    """
    if not is_first_process():
        return
    step = results["global_step"]
    shown = ", ".join(f"{name} = {_shown(results[name])}" for name in sorted(results, key=str))
    _logger.info("Saving dict for global step %d: %s", step, shown)
    errors: list[Exception] = []
    for name, value in results.items():
        if name == "global_step":
            continue
        if (array := _numbers(value)) is not None:
            with _collected(errors):
                writer.array(str(name), array, step)
        else:
            _logger.warning(
                "Skipping summary for %s: it is no number and no array of numbers, but %s. It is returned as it is.",
                *(name, type(value)),
            )
    if checksums.exists(path):
        _logger.info("Saving 'checkpoint_path' summary for global step %d: %s", step, path)
        with _collected(errors):
            writer.text("checkpoint_path", path, step)
    if errors:
        _warn_not_written(errors[0])


@contextlib.contextmanager
def _collected(errors: list[Exception]) -> Iterator[None]:
    """Within it, an error is added to `errors`: the other results are written all the same."""
    try:
        yield
    except Exception as error:
        errors.append(error)


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
