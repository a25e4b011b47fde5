"""Names in messages: not more of them than a reader takes in."""

import difflib
from collections.abc import Collection, Iterable

MOST_NAMES = 8
"""As many a message lists."""


def similar_names(name: str, names: Collection[str]) -> list[str]:
    """Those of the names that are spelled like `name`, the most similar first."""
    return difflib.get_close_matches(name, names, n=MOST_NAMES, cutoff=0.5)


def listed(names: Iterable[str], separator: str = ", ") -> str:
    """The names for a message: the first ones, and how many there are more."""
    names = list(names)
    more = len(names) - MOST_NAMES
    return separator.join(names[:MOST_NAMES]) + (f"{separator}and {more} more" if more > 0 else "")
