"""Exporters: which evaluations lead to an export of the model, and how many exports are kept."""

import abc
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

from jaxspec._src.base.files import is_directory, names_in
from jaxspec._src.base.paths import join
from jaxspec._src.base.types import Metrics
from jaxspec._src.base.validate import check_arguments, check_number
from jaxspec._src.export.best_result import read_best_result, write_best_result
from jaxspec._src.export.directory import STAGED, VERSION, remove_export
from jaxspec._src.export.receiver import ServingInputReceiver
from jaxspec._src.export.signature_file import is_unfinished


class Exporter(abc.ABC):
    """Base class of exporters for `EvalSpec(exporters=...)`. `train_and_evaluate` calls `export` after each
    evaluation."""

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """The name of its directory in `MODEL_DIR/export`. Two exporters of one EvalSpec have different names."""

    @abc.abstractmethod
    def export(
        self,
        estimator: Any,
        export_path: str,
        checkpoint_path: str,
        eval_result: Metrics,
        is_the_final_export: bool,
    ) -> object:
        """Decides whether to export the checkpoint that was evaluated, and exports it.

        Args:
          estimator: the `TPUEstimator`; its `export_saved_model` writes an export.
          export_path: `MODEL_DIR/export/NAME`. It may not exist yet.
          checkpoint_path: the checkpoint that was evaluated.
          eval_result: what `evaluate` returned.
          is_the_final_export: whether training has reached max_steps.

        Returns:
          The path of the export; None if there is none.
        """


ReceiverFn: TypeAlias = Callable[[], ServingInputReceiver]
_logger = logging.getLogger("jaxspec")


class SavesModels(Protocol):
    """The part of an estimator that exporters use."""

    def export_saved_model(
        self,
        export_dir_base: str,
        serving_input_receiver_fn: ReceiverFn | None,
        *,
        assets_extra: Mapping[str, str] | None,
        checkpoint_path: str | None,
    ) -> str:
        """Writes an export into a new directory in `export_dir_base`, and returns its path."""


class _SavedModelExporter(Exporter):
    """Exports with `export_saved_model` when `_is_due` says so, and keeps the newest exports."""

    def __init__(
        self,
        name: str,
        serving_input_receiver_fn: ReceiverFn | None,
        assets_extra: Mapping[str, str] | None = None,
        as_text: bool = False,
        exports_to_keep: int | None = 5,
    ) -> None:
        check_number("exports_to_keep", exports_to_keep, above=0, whole=True, instead="None keeps all exports.")
        self._name, self._exports_to_keep = name, exports_to_keep
        self._receiver_fn, self._assets_extra = serving_input_receiver_fn, assets_extra

    @property
    def name(self) -> str:
        return self._name

    def export(
        self,
        estimator: SavesModels,
        export_path: str,
        checkpoint_path: str,
        eval_result: Metrics,
        is_the_final_export: bool,
    ) -> str | None:
        if not self._is_due(export_path, eval_result, is_the_final_export):
            return None
        exported = estimator.export_saved_model(
            export_path, self._receiver_fn, assets_extra=self._assets_extra, checkpoint_path=checkpoint_path
        )
        self._exported(export_path, eval_result)
        _remove_old_exports(export_path, self._exports_to_keep)
        return exported

    def _is_due(self, export_path: str, eval_result: Metrics, is_final: bool) -> bool:
        return True

    def _exported(self, export_path: str, eval_result: Metrics) -> None:
        """Called after an export."""


class FinalExporter(_SavedModelExporter):
    """Exports once, when training has reached max_steps. A run that stops earlier has no final export.

    Args:
      name: of its directory in `MODEL_DIR/export`.
      serving_input_receiver_fn, assets_extra: for `TPUEstimator.export_saved_model`.
      as_text: ignored; there is one format.
    """

    def __init__(
        self,
        name: str,
        serving_input_receiver_fn: ReceiverFn | None,
        assets_extra: Mapping[str, str] | None = None,
        as_text: bool = False,
    ) -> None:
        super().__init__(name, serving_input_receiver_fn, assets_extra, exports_to_keep=None)

    def _is_due(self, export_path: str, eval_result: Metrics, is_final: bool) -> bool:
        if is_final:
            _logger.info("Performing the final export in the end of training.")
        return is_final


class LatestExporter(_SavedModelExporter):
    """Exports after each evaluation and keeps the newest exports.

    Args:
      name: of its directory in `MODEL_DIR/export`.
      serving_input_receiver_fn, assets_extra: for `TPUEstimator.export_saved_model`.
      as_text: ignored; there is one format.
      exports_to_keep: how many exports are kept; None: all.

    Raises:
      ValueError: if `exports_to_keep` is not positive.
    """


def _loss_smaller(best_eval_result: Metrics, current_eval_result: Metrics) -> bool:
    """Whether the current loss is smaller, any number being smaller than NaN."""
    losses = []
    for name, result in (("best_eval_result", best_eval_result), ("current_eval_result", current_eval_result)):
        if "loss" not in result:
            raise ValueError(
                f"{name} cannot be empty or no loss is found in it. It holds {sorted(result)}; pass "
                "BestExporter(compare_fn=...) to compare by one of these."
            )
        losses.append(float(result["loss"]))
    best, current = losses
    return best > current or (math.isnan(best) and not math.isnan(current))


class BestExporter(_SavedModelExporter):
    """Exports after an evaluation that is better than the best one before.

    The best result is kept in `best_eval_result.json`, beside the exports. So after a restart, too, only a better one
    is exported. Without that file the first evaluation is the best so far.

    Args:
      name: of its directory in `MODEL_DIR/export`.
      serving_input_receiver_fn, assets_extra: for `TPUEstimator.export_saved_model`.
      event_file_pattern: ignored; nothing is read from event files.
      compare_fn: `compare_fn(best_eval_result, current_eval_result)`, called by keyword; returns whether the current
        one is better. Both are dicts as `evaluate` returns them. The best one comes from the file, with Python's
        numbers in place of NumPy's. Default: whether `loss` is smaller.
      as_text: ignored; there is one format.
      exports_to_keep: how many exports are kept, the newest; None: all.

    Raises:
      TypeError: if `compare_fn` is not callable.
      ValueError: if `compare_fn` is None or has other arguments; if `exports_to_keep` is not positive.
    """

    def __init__(
        self,
        name: str = "best_exporter",
        serving_input_receiver_fn: ReceiverFn | None = None,
        event_file_pattern: str | None = "eval/*.tfevents.*",
        compare_fn: Callable[..., bool] = _loss_smaller,
        assets_extra: Mapping[str, str] | None = None,
        as_text: bool = False,
        exports_to_keep: int | None = 5,
    ) -> None:
        expected = ("best_eval_result", "current_eval_result")
        mend = f"Write compare_fn({', '.join(expected)}), which returns whether the current result is better."
        if compare_fn is None:
            raise ValueError(f"`compare_fn` must not be None. {mend} Left out, the loss is compared.")
        check_arguments(compare_fn, role="compare_fn", allowed=expected, required=expected, instead=mend)
        super().__init__(name, serving_input_receiver_fn, assets_extra, as_text, exports_to_keep)
        self._compare_fn = compare_fn

    def _is_due(self, export_path: str, eval_result: Metrics, is_final: bool) -> bool:
        best = read_best_result(export_path)
        is_better = best is None or self._compare_fn(best_eval_result=best, current_eval_result=eval_result)
        if is_better:
            _logger.info("Performing best model export.")
        return is_better

    def _exported(self, export_path: str, eval_result: Metrics) -> None:
        # Not before the export: a run that is killed in between exports twice, rather than never.
        write_best_result(export_path, eval_result)


def _remove_old_exports(export_path: str, exports_to_keep: int | None) -> None:
    """Removes all but the newest exports, and what a run that was killed has left; other directories stay."""
    names = [name for name in names_in(export_path) if is_directory(join(export_path, name))]
    versions = sorted(filter(VERSION.fullmatch, names))
    unfinished = [name for name in versions if is_unfinished(names_in(join(export_path, name)))]
    exports = [name for name in versions if name not in unfinished]
    old = [] if exports_to_keep is None else exports[:-exports_to_keep]
    for name in (*filter(STAGED.fullmatch, names), *unfinished, *old):
        try:
            remove_export(join(export_path, name))
        except OSError as error:
            _logger.warning("Can not delete the old export %s: %s", name, error)
