"""Checks of the fetch names that a hook is constructed with."""

from collections.abc import Iterable, Mapping

import jax

from jaxspec._src.base.arrays import describe_array, is_array
from jaxspec._src.hooks.session import Fetches


def refuse_arrays(argument: str, fetches: Fetches) -> None:
    """Raises TypeError for an array where a fetch name belongs.

    Args:
      argument: the class and its argument, for the message.
      fetches: what the user passed.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(fetches):
        if is_array(leaf):
            raise TypeError(
                f"{argument}{jax.tree_util.keystr(path)} is an array, {describe_array(leaf)}; hooks ask for tensors by name: "
                "write 'loss', or give the tensor a name with host_call=(fn, {'name': tensor}) and write 'name'."
            )


def by_tag(argument: str, fetches: str | Iterable[str] | Mapping[str, str]) -> dict[str, str]:
    """Fetch names by their tags: one that comes without a tag is its own.

    Args:
      argument: the class and its argument, for the message.
      fetches: what the user passed: a fetch name, a list of them, or a dict from tags to fetch names, which is sorted.
    """
    refuse_arrays(argument, fetches)
    if isinstance(fetches, Mapping):
        return dict(sorted(fetches.items()))
    names = [fetches] if isinstance(fetches, str) or not isinstance(fetches, Iterable) else fetches
    return {name: name for name in names}
