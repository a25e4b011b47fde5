"""TrainSpec and EvalSpec: how train_and_evaluate trains and evaluates."""

import dataclasses
import re
from collections.abc import Iterable

from jaxspec._src.base.types import InputFn
from jaxspec._src.base.validate import check_number
from jaxspec._src.export.exporters import Exporter
from jaxspec._src.hooks.checkpoint_saver import CheckpointSaverListener, check_listeners
from jaxspec._src.run.validate import check_input_fn, check_steps
from jaxspec._src.spec.hook import SessionRunHook, check_hooks


@dataclasses.dataclass(frozen=True)
class TrainSpec:
    """How `train_and_evaluate` trains. The arguments are those of `TPUEstimator.train`.

    Raises:
      ValueError, TypeError: for arguments that `train` would refuse.
    """

    input_fn: InputFn = None  # type: ignore[assignment]  # left out, it is refused with a sentence
    max_steps: int | None = None
    """The global step to reach; None: to the end of the input."""
    hooks: Iterable[SessionRunHook] | None = None
    """Kept as a tuple."""
    saving_listeners: Iterable[CheckpointSaverListener] | None = None
    """Called before the evaluation of a checkpoint. Kept as a tuple."""
    resume_input: bool | None = None
    """Whether the input goes on at the saved position; None: if it is the input that the position came from."""

    def __post_init__(self) -> None:
        check_input_fn(self.input_fn)
        check_steps("Train", None, self.max_steps)
        object.__setattr__(self, "hooks", check_hooks(self.hooks))
        object.__setattr__(self, "saving_listeners", check_listeners(self.saving_listeners))


@dataclasses.dataclass(frozen=True)
class EvalSpec:
    """How `train_and_evaluate` evaluates. The first four arguments are those of `TPUEstimator.evaluate`.

    Raises:
      ValueError, TypeError: for arguments that `evaluate` would refuse, negative times, what is no exporter, and
        exporters without a name of their own.
    """

    input_fn: InputFn = None  # type: ignore[assignment]  # left out, it is refused with a sentence
    steps: int | None = 100
    """Batches to take at most; None: all."""
    name: str | None = None
    hooks: Iterable[SessionRunHook] | None = None
    """Kept as a tuple."""
    exporters: Exporter | Iterable[Exporter] | None = None
    """Asked in this order after each evaluation. Kept as a tuple."""
    start_delay_secs: float = 120
    """For an evaluator in a process of its own; not used where training and evaluation take turns."""
    throttle_secs: float = 600
    """Seconds from the start of one evaluation to the next, at least. The last checkpoint is always evaluated."""

    def __post_init__(self) -> None:
        check_input_fn(self.input_fn)
        check_steps("Eval", self.steps, None)
        if self.name is not None and not isinstance(self.name, str):
            raise TypeError(f"`name` must be string, given: {self.name}. It names the directory eval_NAME.")
        object.__setattr__(self, "hooks", check_hooks(self.hooks))
        object.__setattr__(self, "exporters", _checked_exporters(self.exporters))
        for name in ("start_delay_secs", "throttle_secs"):
            check_number(name, getattr(self, name), minimum=0, required=True)


def _checked_exporters(exporters: Exporter | Iterable[Exporter] | None) -> tuple[Exporter, ...]:
    if exporters is None:
        return ()
    if isinstance(exporters, Exporter):
        exporters = (exporters,)
    checked: tuple[Exporter, ...] = tuple(exporters) if isinstance(exporters, Iterable) else (exporters,)
    for exporter in checked:
        if not isinstance(exporter, Exporter):
            raise TypeError(
                f"`exporters` must be an Exporter, an iterable of Exporter, or `None`, found {exporter!r}. Derive it "
                "from jaxspec.Exporter and pass an instance."
            )
    names = [exporter.name for exporter in checked]
    for name in names:
        if name is None or name == "":
            raise ValueError(
                f"An Exporter cannot have a name that is `None` or empty. All exporter names: {names}. Give it one, as "
                "in FinalExporter('final', ...): its exports go to MODEL_DIR/export/NAME."
            )
        if not isinstance(name, str):
            raise ValueError(f"An Exporter must have a string name. Given: {type(name)}, {name!r}.")
        if re.search(r"[/\\]", name) or name in (".", ".."):
            raise ValueError(
                f"An Exporter's name must be that of one directory, given: {name!r}. Its exports go to "
                "MODEL_DIR/export/NAME."
            )
    if len(set(names)) < len(names):
        raise ValueError(
            f"`exporters` must have unique names. Such a name cannot be `None`. All exporter names: {names}. Each "
            "exports to MODEL_DIR/export/NAME: give each a name of its own."
        )
    return checked
