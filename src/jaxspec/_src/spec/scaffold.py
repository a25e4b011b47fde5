"""Scaffold: a host function that replaces fresh variables, for example by pretrained weights."""

from collections.abc import Callable

from jaxspec._src.base.types import Variables
from jaxspec._src.base.validate import check_callable
from jaxspec._src.spec.captures import note_captured_tracers, refuse_captured_tracers


class Scaffold:
    """What `scaffold_fn()` returns, on the host.

    Args:
      init_fn: `variables -> variables`, called once with freshly initialised variables and never after a restore:
        the place to load pretrained weights. It runs on the host and may read files.
    """

    def __init__(self, init_fn: Callable[..., Variables] | None = None) -> None:
        if init_fn is not None:
            check_callable("Scaffold: init_fn", init_fn, "Write a function of the variables that returns variables.")
        self.init_fn = init_fn


def check_scaffold_fn(scaffold_fn: Callable[[], Scaffold] | None) -> Callable[[], Scaffold] | None:
    """Raises unless `scaffold_fn` is None, or a function that holds no traced array."""
    if scaffold_fn is not None:
        check_callable("scaffold_fn", scaffold_fn, "Write a function without arguments that returns a Scaffold.")
        refuse_captured_tracers(scaffold_fn, "scaffold_fn", _instead)
    return scaffold_fn


def call_scaffold_fn(scaffold_fn: Callable[[], Scaffold]) -> Scaffold:
    """Calls a spec's scaffold_fn. Its exception is raised as it is, with a note."""
    try:
        scaffold = scaffold_fn()
    except BaseException as error:
        error.add_note("raised by scaffold_fn")
        note_captured_tracers(error, scaffold_fn, "scaffold_fn", _instead)
        raise
    if scaffold is None:
        raise ValueError("TPUEstimatorSpec.scaffold_fn returns None, which is not allowed; return a jaxspec.Scaffold.")
    if not isinstance(scaffold, Scaffold):
        raise TypeError(f"scaffold_fn must return a jaxspec.Scaffold. Given: {scaffold!r}")
    return scaffold


def _instead(name: str) -> str:
    return "let Scaffold.init_fn(variables) compute it from the variables that it is given."
