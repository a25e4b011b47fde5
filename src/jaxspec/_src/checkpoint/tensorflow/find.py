"""Where a checkpoint of TensorFlow is: a prefix such as `model.ckpt-123`, which its files have in common."""

import os
import re

from jaxspec._src.base.files import find_file, is_directory, names_in, read_file, read_range
from jaxspec._src.base.paths import absolute_path, join, split
from jaxspec._src.checkpoint.tensorflow.table import MAGIC

_STATE_FILE = "checkpoint"
_LATEST = re.compile(rb'^\s*model_checkpoint_path\s*:\s*"((?:[^"\\\n]|\\.)*)"', re.MULTILINE)


def is_tensorflow_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Whether the path is the prefix of a TensorFlow checkpoint, or a directory whose file `checkpoint` names one.

    It may be damaged, or in the old format that `load_checkpoint` refuses.
    """
    path = absolute_path(path)
    return find_file(f"{path}.index") is not None or _latest_in(path) is not None or _is_old_format(path)


def find_checkpoint(path: str | os.PathLike[str]) -> str:
    """The prefix of a checkpoint.

    Args:
      path: the prefix itself, or a directory whose file `checkpoint` names the latest.

    Raises:
      ValueError: if there is no such checkpoint, or it is in the format of before TensorFlow 1.0.
    """
    path = absolute_path(path)
    latest = None if find_file(f"{path}.index") else _latest_in(path)
    prefix = latest or path
    if find_file(f"{prefix}.index"):
        return prefix
    if _is_old_format(prefix):
        raise ValueError(
            f"{prefix} is a checkpoint in TensorFlow's format V1, which this reader does not know. Restore it with "
            "TensorFlow, and save it with tf.compat.v1.train.Saver(), which writes the format V2."
        )
    if latest:
        raise ValueError(
            f"the file {join(path, _STATE_FILE)} names the checkpoint {latest}, and {latest}.index does not exist. "
            f"Give the prefix of another checkpoint. Those near it: {prefixes_near(path)}."
        )
    raise ValueError(
        f"there is no TensorFlow checkpoint at {path}. Expected a prefix such as 'DIRECTORY/model.ckpt-123', which its "
        "files .index and .data-00000-of-00001 have in common, or a directory with a file `checkpoint` that names the "
        f"latest. Those near it: {prefixes_near(path)}."
    )


def _latest_in(directory: str) -> str | None:
    """The prefix that the file `checkpoint` of a directory names; None if there is no such file."""
    state_file = join(directory, _STATE_FILE)
    if find_file(state_file) is None or (match := _LATEST.search(read_file(state_file))) is None:
        return None
    latest = re.sub(rb"\\([0-7]{3}|.)", _unescaped, match[1]).decode(errors="surrogateescape")
    return absolute_path(latest if "://" in latest else join(directory, latest))


def _unescaped(match: re.Match[bytes]) -> bytes:
    """The byte that a sequence of the text format of protocol buffers stands for."""
    return bytes([int(match[1], 8) & 0xFF]) if len(match[1]) == 3 else match[1]


def _is_old_format(path: str) -> bool:
    file = None if path.endswith(".index") else find_file(path)
    return file is not None and read_range(path, max(file.size - len(MAGIC), 0), len(MAGIC)) == MAGIC


def prefixes_near(path: str) -> list[str]:
    """The prefixes of the checkpoints that are in a directory, in the `variables` of a SavedModel, or beside a path."""
    directory = path if is_directory(path) else split(path)[0]
    return [
        join(place, name.removesuffix(".index"))
        for place in (directory, join(directory, "variables"))
        for name in sorted(names_in(place))
        if name.endswith(".index")
    ]
