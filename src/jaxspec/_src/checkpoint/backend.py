"""All calls of orbax: no other file imports it.

orbax numbers its operations with one counter of the process, and a save and a read at the same time, from two threads,
take each other's numbers. So one call runs at a time.
"""

import concurrent.futures
import contextlib
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any, Self

import jax
import numpy as np

from jaxspec._src.base.paths import in_bucket
from jaxspec._src.base.types import PyTree, T

_one_at_a_time = threading.Lock()

NOT_READ = ...
"""It stands for a leaf that `load` does not read. (It is orbax's PLACEHOLDER, without the import.)"""


class _NotCopied(np.ndarray):
    """An array that orbax writes as it is: of others it makes a deep copy first."""

    def __deepcopy__(self, memo: object) -> Self:
        return self


def operation_number() -> int:
    """The number of the last operation of this process. `agreed_number` makes one for all processes of it."""
    return int(_operations().get_current_operation_id())


def agreed_number(numbers: Iterable[int]) -> int:
    """The number of the save that processes with these numbers make together next.

    Each may read in another thread before it saves, so the number leaves some room.
    """
    return max(numbers) + 100


def _operations() -> Any:
    from orbax.checkpoint._src.futures.synchronization import OperationIdGenerator

    return OperationIdGenerator


def reaches(path: str) -> bool:
    """Whether orbax can read and write there: on a disk and in Google Cloud Storage, not in S3."""
    return not in_bucket(path) or path.startswith("gs://")


def save(path: str, parts: Mapping[str, PyTree], copied: Callable[[], None], operation: int | None = None) -> None:
    """Writes a directory with the parts; returns when all of it is written. All processes of a run call it together.

    Args:
      path: the directory to make. It appears whole or not at all.
      parts: trees of arrays as nested dicts, or JSON. Nothing may write to a NumPy array meanwhile.
      copied: called when the arrays of JAX have been copied to the host, so that they may be donated.
      operation: what the processes have agreed on; None: there is one process.
    """
    parts = jax.tree.map(lambda x: x.view(_NotCopied) if isinstance(x, np.ndarray) else x, dict(parts))
    with _orbax(path, alone=False) as (ocp, path):
        # orbax numbers the operations of each process, and joins those of the same number. Reads are counted, too, and
        # one process may have made more of them.
        while operation is not None and operation_number() < operation:
            _operations().next_operation_id()
        writing = ocp.save_checkpointables_async(path, parts, overwrite=True)
        copied()
        writing.result()


def load(path: str, parts: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """Reads parts of a checkpoint.

    Args:
      parts: by name, trees of `jax.ShapeDtypeStruct` with shardings, as nested dicts; None for JSON. A leaf that is
        `NOT_READ` is left out.
    """
    return _read(path, lambda ocp, path: ocp.load_checkpointables(path, parts))


def shapes(path: str) -> dict[str, PyTree]:
    """The parts of a checkpoint, with objects that have `shape` and `dtype` in place of the arrays."""
    return _read(path, lambda ocp, path: dict(ocp.checkpointables_metadata(path).metadata))


def _read(path: str, read: Callable[[ModuleType, str], T]) -> T:
    """Calls `read(orbax, path)` in a thread, and returns or raises what it does.

    When the caller is interrupted, the thread goes on, and holds the lock until it has ended.
    """
    # It may be set for the caller's thread alone.
    is_x64 = bool(jax.config.jax_enable_x64)  # type: ignore[attr-defined]

    def run() -> T:
        with jax.enable_x64(is_x64), _orbax(path, alone=True) as (ocp, plain):
            return read(ocp, plain)

    reader = concurrent.futures.ThreadPoolExecutor(1, "jaxspec-checkpoint-reader")
    outcome = reader.submit(run)
    reader.shutdown(wait=False)
    return outcome.result()


@contextlib.contextmanager
def _orbax(path: str, *, alone: bool) -> Iterator[tuple[ModuleType, str]]:
    """Yields (orbax, the path to give it), while no other thread calls orbax.

    Args:
      alone: whether this process does it without the others.
    """
    with _one_at_a_time:
        import orbax.checkpoint.experimental.v1 as ocp

        # A directory that is made in the background, and cannot be made, keeps the process alive for minutes.
        context = ocp.Context()
        context.asynchronous.create_directories_asynchronously = False
        if alone and jax.process_count() > 1:
            this = jax.process_index()
            context.multiprocessing.primary_host, context.multiprocessing.active_processes = this, {this}
            context.multiprocessing.barrier_sync_key_prefix = f"jaxspec_{this}"
        with context, _without_patterns(path) as plain, _errors_logged_once():
            yield ocp, plain


@contextlib.contextmanager
def _errors_logged_once() -> Iterator[None]:
    """Keeps orbax from logging an error, in hundreds of lines, that it also raises."""
    logger = logging.getLogger("absl")

    def is_other(record: logging.LogRecord) -> bool:
        return "_SignalingThread.run() raised" not in str(record.msg)

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


@contextlib.contextmanager
def _without_patterns(path: str) -> Iterator[str]:
    """Yields the path, or a link to it where orbax would take some of its characters for a glob pattern."""
    if not set("[]?*\\{}") & set(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as directory:
        link = os.path.join(directory, "checkpoints")
        os.symlink(os.path.dirname(path), link)
        yield os.path.join(link, os.path.basename(path))
