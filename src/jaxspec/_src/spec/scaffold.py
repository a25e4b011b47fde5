"""Scaffold: what fills fresh variables, on the host."""

from collections.abc import Callable
from typing import Any

from jaxspec._src.spec.captures import note_captured_tracers


class Scaffold:
    """What `scaffold_fn()` returns. Lives on the host.

    Args:
      init_fn: `variables -> variables`, run once on freshly initialised variables and never after a restore:
        the place where pretrained weights go in. Host code; it may read files.
    """

    def __init__(self, init_fn: Callable[[Any], Any] | None = None) -> None:
        if init_fn is not None and not callable(init_fn):
            raise TypeError(f"Scaffold: init_fn must be callable, given: {init_fn!r}.")
        self.init_fn = init_fn


def call_scaffold_fn(scaffold_fn: Callable[[], Any]) -> Scaffold:
    """Calls a spec's scaffold_fn; its exception comes back as itself."""
    try:
        scaffold = scaffold_fn()
    except BaseException as error:
        error.add_note("raised by scaffold_fn")
        note_captured_tracers(error, scaffold_fn, "scaffold_fn", _mend_scaffold)
        raise
    if scaffold is None:
        raise ValueError("TPUEstimatorSpec.scaffold_fn returns None, which is not allowed; return a jaxspec.Scaffold.")
    if not isinstance(scaffold, Scaffold):
        raise TypeError(f"scaffold_fn must return a jaxspec.Scaffold. Given: {scaffold!r}")
    return scaffold


def _mend_scaffold(name: str) -> str:
    return "let Scaffold.init_fn(variables) compute it from the variables it is given."
