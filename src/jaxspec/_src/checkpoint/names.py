"""A tree as nested dicts of names that a checkpoint can hold, and back."""

import urllib.parse
from typing import Any

import jax

from jaxspec._src.base.arrays import key_name, path_name

_ROOT = "value"
"""The name of a tree that is one array."""
_EMPTY = "%"
"""The name of the empty key; no other key becomes this."""


def nested(tree: Any) -> dict[str, Any]:
    """A tree as nested dicts; different paths stay different, whatever characters their keys have.

    Raises:
      ValueError: naming two leaves below different keys of one node that are equal as text.
    """
    out: dict[str, Any] = {}
    first: dict[tuple[str, ...], Any] = {}  # by the names of a node, the first path that goes there
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        *parents, last = names = encoded_path(path)
        for depth in range(1, len(path) + 1):
            other = first.setdefault(tuple(names[:depth]), path)
            if other[:depth] != path[:depth]:
                one, two = (jax.tree_util.keystr(either) for either in (other, path))
                raise ValueError(
                    f"the leaves {one} and {two} have the same name, {path_name(path[:depth])}: a checkpoint cannot tell "
                    "them apart. Give one of them another key."
                )
        node = out
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = leaf
    return out


def encoded_path(path: tuple[Any, ...]) -> list[str]:
    """The names under which `nested` puts the leaf of a key path."""
    return [_encode(key_name(key)) for key in path] or [_ROOT]


def decoded(tree: Any) -> Any:
    """Nested dicts with the keys that `nested` has encoded as they were, but as strings."""
    return {_decode(name): decoded(value) for name, value in tree.items()} if isinstance(tree, dict) else tree


def is_plain(tree: Any) -> bool:
    """Whether a tree is nested dicts with strings for keys, so that its stored form tells what it was."""
    if isinstance(tree, dict):
        return all(isinstance(key, str) for key in tree) and all(map(is_plain, tree.values()))
    return jax.tree_util.all_leaves([tree])


def _encode(key: str) -> str:
    # A dot parts names in the files.
    return urllib.parse.quote(key, safe="", errors="surrogatepass").replace(".", "%2E") or _EMPTY


def _decode(name: str) -> str:
    return "" if name == _EMPTY else urllib.parse.unquote(name, errors="surrogatepass")
