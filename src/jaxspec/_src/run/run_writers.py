"""The summary writer of a run: its event file, and the sinks of `RunConfig(writers=...)`."""

import contextlib
import logging
import os
from collections.abc import Iterator

from jaxspec._src.run.config import RunConfig
from jaxspec._src.summary.writer import SummaryWriter, create_file_writer

_logger = logging.getLogger("jaxspec")


@contextlib.contextmanager
def run_writer(config: RunConfig, logdir: str) -> Iterator[SummaryWriter]:
    """The writer of a training or an evaluation, flushed on leaving.

    Args:
      config: its writers are the sinks. In them, the tags of an evaluation begin with the name of its directory.
      logdir: the directory of the event file: the model_dir, or the directory of an evaluation in it.
    """
    assert config.model_dir is not None
    name = os.path.relpath(logdir, config.model_dir)
    prefix = "" if name == os.curdir else f"{name}/"
    writer = create_file_writer(logdir).with_sinks(config.writers, prefix=prefix)
    try:
        yield writer
    except BaseException as error:
        try:
            writer.flush()
        except Exception as another:  # the first error is the one to raise
            error.add_note(f"and then, of a summary writer: {type(another).__name__}: {another}")
        raise
    try:
        writer.flush()
    except Exception as error:
        warn_not_written(error)


def warn_not_written(error: Exception) -> None:
    """Warns that summaries were lost: what was computed is returned although it could not be written down."""
    said = "; ".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])
    _logger.warning("The results are returned, but not all summaries could be written: %s.", said, exc_info=error)
