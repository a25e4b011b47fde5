"""Which checkpoints a model_dir holds, which of them is the latest that is undamaged, and waiting for new ones."""

import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator

from jaxspec._src.base.buckets import StoredFile
from jaxspec._src.base.errors import DamagedCheckpointError
from jaxspec._src.base.files import files_in, files_under, find_file, names_in
from jaxspec._src.base.paths import absolute_path, in_bucket, join, split
from jaxspec._src.base.types import Clock
from jaxspec._src.base.validate import check_callable, check_number
from jaxspec._src.checkpoint import checksums

_logger = logging.getLogger("jaxspec")
_LOOK_EVERY_SECS = 1.0
_LOOK_INTO_BUCKET_EVERY_SECS = 10.0
"""Stores charge for each look."""
_NAME = re.compile(r"model\.ckpt-(0|[1-9][0-9]*)")
_INDEX_OF_TENSORFLOW = re.compile(r"(.+-([0-9]+))\.index")


def checkpoint_path(model_dir: str, step: int) -> str:
    """The path of the checkpoint of a step, whether it exists or not."""
    return join(absolute_path(model_dir), f"model.ckpt-{step}")


def checkpoint_steps(model_dir: str) -> list[int]:
    """The steps of the checkpoints in `model_dir`, ascending. One that is still being written does not count."""
    directory = absolute_path(model_dir)
    if in_bucket(directory):
        return list(_file_of_each(directory, checksums.MANIFEST))
    return _steps_of(names_in(directory))


def times_kept(model_dir: str) -> dict[int, float]:
    """The steps of the checkpoints that are to be kept for ever, and when each was marked so, in seconds since the
    epoch."""
    return {step: mark.modified for step, mark in _file_of_each(absolute_path(model_dir), checksums.KEPT).items()}


def _file_of_each(directory: str, name: str) -> dict[int, StoredFile]:
    """The file of that name of each checkpoint that has one, by steps, ascending."""
    if in_bucket(directory):  # one request
        files = {
            checkpoint: file
            for path, file in files_under(directory, "model.ckpt-").items()
            for checkpoint, _, rest in [path.partition("/")]
            if rest == name
        }
        return {step: files[f"model.ckpt-{step}"] for step in _steps_of(files)}
    found = {step: find_file(join(directory, f"model.ckpt-{step}", name)) for step in _steps_of(names_in(directory))}
    return {step: file for step, file in found.items() if file is not None}


def _steps_of(names: Iterable[str]) -> list[int]:
    """The steps of those names that are names of checkpoints, ascending."""
    return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))


def latest_checkpoint(model_dir: str) -> str | None:
    """The path of the checkpoint with the highest step, or None. It may be damaged: its files are not read."""
    steps = checkpoint_steps(model_dir)
    return checkpoint_path(model_dir, steps[-1]) if steps else None


def latest_of_tensorflow(model_dir: str) -> str | None:
    """The path, as TensorFlow gives it, of TensorFlow's checkpoint with the highest step, or None."""
    directory = absolute_path(model_dir)
    matches = (_INDEX_OF_TENSORFLOW.fullmatch(name) for name in files_in(directory))
    found = [(int(match[2]), match[1]) for match in matches if match]
    return join(directory, max(found)[1]) if found else None


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


def is_checkpoint(path: str) -> bool:
    """Whether there is a checkpoint at `path`, by its name. It may be damaged."""
    return _NAME.fullmatch(split(path)[1]) is not None and checksums.exists(path)


def checkpoint_step(path: str) -> int:
    """The step of the checkpoint at `path`: the number of updates that were made.

    Raises:
      ValueError: if the name is not that of a checkpoint.
      FileNotFoundError: if there is no such directory. It is a ValueError, too.
    """
    directory, name = split(absolute_path(path))
    match = _NAME.fullmatch(name)
    if match is None or not checksums.exists(join(directory, name)):
        found = checkpoint_steps(directory)
        latest = latest_checkpoint(join(directory, name))
        problem = (
            f"The passed save_path is not a valid checkpoint: {path}. Expected a directory named model.ckpt-STEP"
            + (f"; the steps there are {found}." if found else ".")
            + (f" It is a model_dir, whose latest checkpoint is {latest}." if latest else "")
        )
        if find_file(join(directory, f"{name}.index")):
            raise ValueError(
                f"{problem} It is a checkpoint of TensorFlow: read it with jaxspec.checkpoint.tf, or begin with its "
                f"weights: TPUEstimator(..., warm_start_from={path!r})."
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


def checkpoints_iterator(
    model_dir: str | os.PathLike[str],
    min_interval_secs: float = 0,
    timeout: float | None = None,
    timeout_fn: Callable[[], bool] | None = None,
    *,
    clock: Clock = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[str]:
    """Yields the latest checkpoint of a directory whenever there is a new one: the loop of a separate evaluator.

    Checkpoints that come and go while the caller is busy are left out. Damaged ones are skipped, each with a warning.
    The trainer may remove a checkpoint after it was yielded (`RunConfig(keep_checkpoint_max=...)` says how many it
    keeps): what reads it then raises FileNotFoundError, and the iterator goes on with the next one.

    Args:
      model_dir: the directory. It need not exist yet.
      min_interval_secs: the least number of seconds between two yields.
      timeout: how many seconds to wait for a new checkpoint; None waits for ever.
      timeout_fn: a function without arguments, called at each timeout: True ends the iteration, False waits once more.
        None ends the iteration at the first timeout.
      clock: seconds since some start.
      sleep: waits for so many seconds.

    Returns:
      A generator of paths.

    Raises:
      ValueError: for negative times. This and the next are raised when the function is called.
      TypeError: for a timeout_fn that cannot be called.
    """
    for name, value in (("min_interval_secs", min_interval_secs), ("timeout", timeout)):
        check_number(name, value, minimum=0)
    if timeout_fn is not None:
        check_callable("timeout_fn", timeout_fn, "Write a function without arguments that returns whether to end.")
    directory = absolute_path(model_dir)
    look_every = _LOOK_INTO_BUCKET_EVERY_SECS if in_bucket(directory) else _LOOK_EVERY_SECS

    damages: set[str] = set()

    def latest_but(last: str | None) -> str | None:
        """The latest undamaged checkpoint; None if it is `last`, or if there is none."""
        for step in reversed(checkpoint_steps(directory)):
            path = checkpoint_path(directory, step)
            if path == last:
                break
            try:
                checksums.verify(path, step)
            except FileNotFoundError:
                continue  # a trainer has removed it
            except DamagedCheckpointError as error:
                if str(error) not in damages:
                    damages.add(str(error))
                    _logger.warning("%s", error)
            else:
                return path
        return None

    def wait_for_new(last: str | None) -> str | None:
        """The latest checkpoint as soon as it is not `last`, or None at the timeout. Looks at least once."""
        until = None if timeout is None else clock() + timeout
        _logger.info("Waiting for new checkpoint at %s", directory)
        while True:
            path = latest_but(last)
            if path is not None:
                _logger.info("Found new checkpoint at %s", path)
                return path
            if until is not None and clock() + look_every > until:
                return None
            sleep(look_every)

    def new_checkpoints() -> Iterator[str]:
        last: str | None = None
        while True:
            new = wait_for_new(last)
            if new is not None:
                last, yielded_at = new, clock()
                yield new
                wait = yielded_at + min_interval_secs - clock()
                if wait > 0:
                    sleep(wait)
            elif timeout_fn is None:
                _logger.info("Timed out waiting for a new checkpoint at %s.", directory)
                return
            elif timeout_fn():
                return

    return new_checkpoints()
