"""All of the process's orbax work. The only file that says orbax.

orbax numbers its operations with one counter of the process: a save and a read at once, from two threads, take each other's
numbers. So one call runs at a time.
"""

import concurrent.futures
import contextlib
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax

_T = TypeVar("_T")

_one_at_a_time = threading.Lock()


def save(path: str, parts: dict[str, Any], copied: Callable[[], None]) -> None:
    """Writes a directory with the parts; returns when it is whole.

    Args:
      path: the directory to make. It appears whole or not at all.
      parts: trees of arrays as nested dicts, or JSON.
      copied: called when the arrays have been copied to the host, so that they may be donated.
    """
    with _calls(path) as (ocp, path):
        writing = ocp.save_checkpointables_async(path, parts, overwrite=True)
        copied()
        writing.result()


def load(path: str, parts: dict[str, Any]) -> dict[str, Any]:
    """Reads parts of a checkpoint.

    Args:
      parts: by name, trees of `jax.ShapeDtypeStruct` with shardings, as nested dicts; None for JSON.
    """

    def read() -> dict[str, Any]:
        with _calls(path) as (ocp, plain):
            loaded: dict[str, Any] = ocp.load_checkpointables(plain, parts)
            return loaded

    return _in_thread(read)


def load_one(path: str, part: str, tree: Any, wanted: Callable[[Any], bool], like: Callable[[Any], Any]) -> Any:
    """One part with the leaves at the `wanted` key paths alone; the others are placeholders."""

    def read() -> Any:
        with _calls(path) as (ocp, plain):

            def one(key_path: Any, leaf: Any) -> Any:
                return like(leaf) if wanted(key_path) else ocp.PLACEHOLDER

            return ocp.load_checkpointables(plain, {part: jax.tree_util.tree_map_with_path(one, tree)})[part]

    return _in_thread(read)


def metadata(path: str) -> Any:
    """The parts of a checkpoint, with shapes and dtypes for arrays."""

    def read() -> Any:
        with _calls(path) as (ocp, plain):
            return ocp.checkpointables_metadata(plain).metadata

    return _in_thread(read)


def _in_thread(read: Callable[[], _T]) -> _T:
    """What `read` returns or raises. An interrupted caller leaves; the reading goes on, and holds the lock till its end."""
    outcome: concurrent.futures.Future[_T] = concurrent.futures.Future()
    is_x64 = bool(jax.config.jax_enable_x64)  # type: ignore[attr-defined]  # may be set for the caller's thread alone

    def run() -> None:
        try:
            with jax.enable_x64(is_x64):
                outcome.set_result(read())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name="jaxspec-checkpoint-reader").start()
    return outcome.result()


@contextlib.contextmanager
def _calls(path: str) -> Iterator[tuple[Any, str]]:
    """(orbax, the path to give it), while no other thread calls it."""
    with _one_at_a_time:
        import orbax.checkpoint.experimental.v1 as ocp

        # A directory that is made in the background and cannot be keeps the process alive for minutes.
        context = ocp.Context()
        context.asynchronous.create_directories_asynchronously = False
        with context, _plain(path) as plain, _errors_told_once():
            yield ocp, plain


@contextlib.contextmanager
def _errors_told_once() -> Iterator[None]:
    """Keeps orbax from logging an error, of hundreds of lines, that it raises, too."""
    logger = logging.getLogger("absl")

    def wanted(record: logging.LogRecord) -> bool:
        return "_SignalingThread.run() raised" not in str(record.msg)

    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)


@contextlib.contextmanager
def _plain(path: str) -> Iterator[str]:
    """The path by way of a link, where it has characters that orbax would take for a pattern."""
    if not set("[]?*\\{}") & set(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as directory:
        link = os.path.join(directory, "checkpoints")
        os.symlink(os.path.dirname(path), link)
        yield os.path.join(link, os.path.basename(path))
