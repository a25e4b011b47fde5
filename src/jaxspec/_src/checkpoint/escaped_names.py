"""A tree as nested dicts whose keys are safe in a checkpoint (escaped), and the way back."""

import urllib.parse
from collections.abc import Hashable

import jax
from jax.tree_util import KeyPath

from jaxspec._src.base.arrays import key_name, path_name, put
from jaxspec._src.base.types import PyTree

_ROOT = "value"
"""The name of a tree that is one array."""
_EMPTY = "%"
"""The name of the empty key. No other key is escaped as this."""


def escape(tree: PyTree) -> dict[str, PyTree]:
    """A tree as nested dicts. Different paths stay different, whatever characters their keys have.

    Raises:
      ValueError: if two keys of one node are equal as text; it names two leaves below them.
    """
    out: dict[str, PyTree] = {}
    first: dict[tuple[str, ...], KeyPath[Hashable]] = {}  # for each node, by its names, the first path that leads to it
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        names = escaped_path(path)
        for depth in range(1, len(path) + 1):
            other = first.setdefault(tuple(names[:depth]), path)
            if other[:depth] != path[:depth]:
                one, two = (jax.tree_util.keystr(either) for either in (other, path))
                raise ValueError(
                    f"the leaves {one} and {two} have the same name, {path_name(path[:depth])}: a checkpoint cannot "
                    "tell them apart. Give one of them another key."
                )
        put(out, names, leaf)
    return out


def escaped_path(path: KeyPath[Hashable]) -> list[str]:
    """The names under which `escape` puts the leaf at a key path."""
    return [_escape_key(key_name(key)) for key in path] or [_ROOT]


def unescape(tree: PyTree) -> PyTree:
    """Nested dicts under the keys that `escape` was given, each as a string."""
    return {_unescape_key(name): unescape(value) for name, value in tree.items()} if isinstance(tree, dict) else tree


def is_plain(tree: PyTree) -> bool:
    """Whether a tree is nested dicts with strings for keys, which `unescape` gives back as it was."""
    if isinstance(tree, dict):
        return all(isinstance(key, str) for key in tree) and all(map(is_plain, tree.values()))
    return jax.tree_util.all_leaves([tree])


def _escape_key(key: str) -> str:
    # In the files, dots separate the names of a path.
    return urllib.parse.quote(key, safe="", errors="surrogatepass").replace(".", "%2E") or _EMPTY


def _unescape_key(name: str) -> str:
    return "" if name == _EMPTY else urllib.parse.unquote(name, errors="surrogatepass")
