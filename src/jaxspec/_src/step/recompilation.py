"""Warns if a model_fn is compiled again and again."""

import logging

import jax

from jaxspec._src.base.arrays import describe_array, is_tracer, named_leaves
from jaxspec._src.base.types import Array, Batch, Variables
from jaxspec._src.spec.mode import Mode

_logger = logging.getLogger("jaxspec")
_EXPECTED_KINDS = 2
"""Kinds of arguments in one mode that need no warning: full batches, and the short one at the end of the input."""


class RecompilationWatch:
    """Warns once for each mode that model_fn was compiled for yet another kind of arguments, and says for which."""

    def __init__(self) -> None:
        self._kinds: dict[Mode, list[dict[str, str]]] = {}

    def called(self, mode: Mode, *, features: Batch, labels: Batch, variables: Variables) -> None:
        """Records the arguments of a call of model_fn. A call with concrete features compiles nothing, and is
        ignored."""
        if not any(map(is_tracer, jax.tree.leaves(features))):
            return
        arguments = named_leaves({"features": features, "labels": labels, "variables": variables})
        kind = {name: _describe(leaf) for name, leaf in arguments.items()}
        kinds = self._kinds.setdefault(mode, [])
        if len(kinds) > _EXPECTED_KINDS or kind in kinds:
            return
        kinds.append(kind)
        if len(kinds) > _EXPECTED_KINDS:
            _logger.warning(
                "model_fn is compiled again and again: in mode %r for %d kinds of arguments by now. What changed last: "
                "%s. Each kind costs a compilation. Give all batches the same shapes and dtypes: pad them to a few "
                "sizes, drop a short last batch, keep dtypes fixed.",
                *(mode, len(kinds), _difference(kinds[-2], kind)),
            )


def _describe(leaf: Array) -> str:
    weak = " (weakly typed)" if getattr(jax.typeof(leaf), "weak_type", False) else ""
    return describe_array(leaf) + weak


def _difference(before: dict[str, str], now: dict[str, str]) -> str:
    changes = [f"{name}: {what}, was {before[name]}" for name, what in now.items() if before.get(name, what) != what]
    changes += [f"{name}: not there before" for name in now if name not in before]
    changes += [f"{name}: not there any more" for name in before if name not in now]
    return "; ".join(changes)
