"""Which checkpoints a model_dir holds, and which of them is the latest that is undamaged."""

import logging
import os
import re

from jaxspec._src.base.errors import DamagedCheckpointError
from jaxspec._src.base.paths import absolute_path
from jaxspec._src.checkpoint import checksums

_logger = logging.getLogger("jaxspec")
_NAME = re.compile(r"model\.ckpt-(0|[1-9][0-9]*)")


def checkpoint_path(model_dir: str, step: int) -> str:
    """The path of the checkpoint of a step, whether it exists or not."""
    return os.path.join(absolute_path(model_dir), f"model.ckpt-{step}")


def checkpoint_steps(model_dir: str) -> list[int]:
    """The steps of the checkpoints in `model_dir`, ascending. One that is still being written does not count."""
    try:
        names = os.listdir(absolute_path(model_dir))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))


def latest_checkpoint(model_dir: str) -> str | None:
    """The path of the checkpoint with the highest step, or None. It may be damaged: its files are not read."""
    steps = checkpoint_steps(model_dir)
    return checkpoint_path(model_dir, steps[-1]) if steps else None


def latest_undamaged_checkpoint(model_dir: str) -> str | None:
    """The path of the undamaged checkpoint with the highest step, or None if there is no checkpoint at all.

    Damaged ones are skipped, each with a warning. Every byte of the one that is returned has been read.

    Raises:
      DamagedCheckpointError: of the highest step, if all are damaged.
    """
    first: DamagedCheckpointError | None = None
    for step in reversed(checkpoint_steps(model_dir)):
        path = checkpoint_path(model_dir, step)
        try:
            checksums.verify(path, step)
        except FileNotFoundError:
            # A trainer has removed it. Before that it has written a newer one.
            if checkpoint_steps(model_dir)[-1:] > [step]:
                return latest_undamaged_checkpoint(model_dir)
        except DamagedCheckpointError as error:
            _logger.warning("%s", error)
            first = first or error
        else:
            return path
    if first is not None:
        raise first
    return None


def checkpoint_step(path: str) -> int:
    """The step of the checkpoint at `path`: the number of updates that were made.

    Raises:
      ValueError: if the name is not that of a checkpoint.
      FileNotFoundError: if there is no such directory. It is a ValueError, too.
    """
    path = os.fspath(path)
    match = _NAME.fullmatch(os.path.basename(os.path.normpath(path)))
    if match is None or not os.path.isdir(path):
        found = checkpoint_steps(os.path.dirname(os.path.normpath(path)) or ".")
        problem = (
            f"The passed save_path is not a valid checkpoint: {path}. Expected a directory named model.ckpt-STEP"
            + (f"; the steps there are {found}." if found else ".")
        )
        if match is None:
            raise ValueError(problem)
        raise checksums.MissingCheckpointError(
            f"{problem} It may have been removed by a trainer that keeps few checkpoints."
        )
    return int(match[1])


def load_global_step(model_dir: str) -> int:
    """The step of the latest checkpoint in `model_dir`, which is the number of updates made; 0 without a checkpoint."""
    steps = checkpoint_steps(model_dir)
    return steps[-1] if steps else 0
