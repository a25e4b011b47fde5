"""All of the process's orbax work. The only file that says orbax.

orbax numbers its operations with one counter of the process: a save and a read at once, from two threads, take each other's
numbers. So one call runs at a time.
"""

import contextlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

_one_at_a_time = threading.RLock()


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
    with _calls(path) as (ocp, path):
        loaded: dict[str, Any] = ocp.load_checkpointables(path, parts)
        return loaded


def load_one(path: str, part: str, tree: Any, wanted: Callable[[Any], bool], like: Callable[[Any], Any]) -> Any:
    """One part with the leaves at the `wanted` key paths alone; the others are placeholders."""
    import jax

    with _calls(path) as (ocp, path):

        def one(key_path: Any, leaf: Any) -> Any:
            return like(leaf) if wanted(key_path) else ocp.PLACEHOLDER

        return ocp.load_checkpointables(path, {part: jax.tree_util.tree_map_with_path(one, tree)})[part]


def metadata(path: str) -> Any:
    """The parts of a checkpoint, with shapes and dtypes for arrays."""
    with _calls(path) as (ocp, path):
        return ocp.checkpointables_metadata(path).metadata


@contextlib.contextmanager
def _calls(path: str) -> Iterator[tuple[Any, str]]:
    """(orbax, the path to give it), while no other thread calls it."""
    with _one_at_a_time:
        import orbax.checkpoint.experimental.v1 as ocp

        # A directory that is made in the background and cannot be keeps the process alive for minutes.
        context = ocp.Context()
        context.asynchronous.create_directories_asynchronously = False
        with context, _plain(path) as plain:
            yield ocp, plain


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
