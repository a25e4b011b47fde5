"""Which checkpoints a model_dir holds."""

import os
import re

from ..paths import absolute_path

_NAME = re.compile(r"model\.ckpt-(\d+)")


def checkpoint_path(model_dir: str, step: int) -> str:
    """Where the checkpoint of a step is."""
    return os.path.join(absolute_path(model_dir), f"model.ckpt-{step}")


def checkpoint_steps(model_dir: str) -> list[int]:
    """The steps of the checkpoints, ascending. One that is still being written does not count."""
    try:
        names = os.listdir(absolute_path(model_dir))
    except FileNotFoundError:
        return []
    return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))


def latest_checkpoint(model_dir: str) -> str | None:
    """The path of the checkpoint with the highest step, or None."""
    steps = checkpoint_steps(model_dir)
    return checkpoint_path(model_dir, steps[-1]) if steps else None


def checkpoint_step(path: str) -> int:
    """The step of the checkpoint at `path`; ValueError if there is none."""
    path = os.fspath(path)
    match = _NAME.fullmatch(os.path.basename(os.path.normpath(path)))
    if match is None or not os.path.isdir(path):
        found = checkpoint_steps(os.path.dirname(os.path.normpath(path)) or ".")
        raise ValueError(
            f"The passed save_path is not a valid checkpoint: {path}. Expected a directory named model.ckpt-STEP"
            + (f"; the steps there are {found}." if found else ".")
        )
    return int(match[1])


def load_global_step(model_dir: str) -> int:
    """The step of the latest checkpoint of `model_dir`; 0 without one."""
    steps = checkpoint_steps(model_dir)
    return steps[-1] if steps else 0
