"""Exporters: which evaluations lead to an export, and how many exports stay."""

import abc
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxspec._src.base.validate import check_arguments, check_number

_logger = logging.getLogger("jaxspec")

_RECORD = "best_eval_result.json"
_VERSION = re.compile(r"\d{10}")


class Exporter(abc.ABC):
    """Base class of what `EvalSpec(exporters=...)` takes: asked after each evaluation of `train_and_evaluate`."""

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """The directory under `MODEL_DIR/export`; unlike that of any other exporter of the EvalSpec."""

    @abc.abstractmethod
    def export(
        self,
        estimator: Any,
        export_path: str,
        checkpoint_path: str,
        eval_result: Mapping[str, Any],
        is_the_final_export: bool,
    ) -> Any:
        """Exports, or not.

        Args:
          estimator: the one that trains; `estimator.export_saved_model` writes an export.
          export_path: `MODEL_DIR/export/NAME`, which may not exist yet.
          checkpoint_path: the checkpoint that was evaluated.
          eval_result: what `evaluate` returned.
          is_the_final_export: whether training has reached max_steps.

        Returns:
          Where the export is; None without one.
        """


class _SavedModelExporter(Exporter):
    """What the exporters below have in common."""

    def __init__(
        self, name: str, serving_input_receiver_fn: Callable[..., Any] | None, assets_extra: Mapping[str, str] | None
    ) -> None:
        self._name = name
        self._serving_input_receiver_fn = serving_input_receiver_fn
        self._assets_extra = assets_extra

    @property
    def name(self) -> str:
        return self._name

    def _export(self, estimator: Any, export_path: str, checkpoint_path: str) -> Any:
        return estimator.export_saved_model(
            export_path,
            self._serving_input_receiver_fn,
            assets_extra=self._assets_extra,
            checkpoint_path=checkpoint_path,
        )


class FinalExporter(_SavedModelExporter):
    """Exports once, when training has reached max_steps. A run that stops earlier has no final export.

    Args:
      name: its directory under `MODEL_DIR/export`.
      serving_input_receiver_fn, assets_extra: for `TPUEstimator.export_saved_model`.
      as_text: ignored: there is one format.
    """

    def __init__(
        self,
        name: str,
        serving_input_receiver_fn: Callable[..., Any] | None,
        assets_extra: Mapping[str, str] | None = None,
        as_text: bool = False,
    ) -> None:
        super().__init__(name, serving_input_receiver_fn, assets_extra)

    def export(
        self,
        estimator: Any,
        export_path: str,
        checkpoint_path: str,
        eval_result: Mapping[str, Any],
        is_the_final_export: bool,
    ) -> Any:
        if not is_the_final_export:
            return None
        _logger.info("Performing the final export in the end of training.")
        return self._export(estimator, export_path, checkpoint_path)


class LatestExporter(_SavedModelExporter):
    """Exports after each evaluation and keeps the newest exports.

    Args:
      name: its directory under `MODEL_DIR/export`.
      serving_input_receiver_fn, assets_extra: for `TPUEstimator.export_saved_model`.
      as_text: ignored: there is one format.
      exports_to_keep: how many exports stay; None: all.

    Raises:
      ValueError: if `exports_to_keep` is not positive.
    """

    def __init__(
        self,
        name: str,
        serving_input_receiver_fn: Callable[..., Any] | None,
        assets_extra: Mapping[str, str] | None = None,
        as_text: bool = False,
        exports_to_keep: int | None = 5,
    ) -> None:
        super().__init__(name, serving_input_receiver_fn, assets_extra)
        self._exports_to_keep = _checked_exports_to_keep(exports_to_keep)

    def export(
        self,
        estimator: Any,
        export_path: str,
        checkpoint_path: str,
        eval_result: Mapping[str, Any],
        is_the_final_export: bool,
    ) -> Any:
        exported = self._export(estimator, export_path, checkpoint_path)
        _remove_old_exports(export_path, self._exports_to_keep)
        return exported


def _loss_smaller(best_eval_result: Mapping[str, Any], current_eval_result: Mapping[str, Any]) -> bool:
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

    The best result is kept in `best_eval_result.json`, beside the exports: after a restart only a better one is
    exported, too. Without that file the first evaluation is the best so far.

    Args:
      name: its directory under `MODEL_DIR/export`.
      serving_input_receiver_fn, assets_extra: for `TPUEstimator.export_saved_model`.
      event_file_pattern: ignored: nothing is read from event files.
      compare_fn: `compare_fn(best_eval_result, current_eval_result)`, called by keyword: whether the current one is
        better. Both are dicts as `evaluate` returns them; the best one comes from the file, with Python's numbers
        for NumPy's. Left out: whether `loss` is smaller.
      as_text: ignored: there is one format.
      exports_to_keep: how many exports stay, the newest; None: all.

    Raises:
      TypeError: if `compare_fn` is not callable.
      ValueError: if `compare_fn` is None or has other arguments; if `exports_to_keep` is not positive.
    """

    def __init__(
        self,
        name: str = "best_exporter",
        serving_input_receiver_fn: Callable[..., Any] | None = None,
        event_file_pattern: str | None = "eval/*.tfevents.*",
        compare_fn: Callable[..., bool] = _loss_smaller,
        assets_extra: Mapping[str, str] | None = None,
        as_text: bool = False,
        exports_to_keep: int | None = 5,
    ) -> None:
        super().__init__(name, serving_input_receiver_fn, assets_extra)
        _check_compare_fn(compare_fn)
        self._compare_fn = compare_fn
        self._exports_to_keep = _checked_exports_to_keep(exports_to_keep)

    def export(
        self,
        estimator: Any,
        export_path: str,
        checkpoint_path: str,
        eval_result: Mapping[str, Any],
        is_the_final_export: bool,
    ) -> Any:
        best = _read_record(export_path)
        if best is not None and not self._compare_fn(best_eval_result=best, current_eval_result=eval_result):
            return None
        _logger.info("Performing best model export.")
        exported = self._export(estimator, export_path, checkpoint_path)
        # After the export: a run that is killed in between exports once more, rather than never.
        _write_record(export_path, eval_result)
        _remove_old_exports(export_path, self._exports_to_keep)
        return exported


def _check_compare_fn(compare_fn: Any) -> None:
    expected = ("best_eval_result", "current_eval_result")
    mend = f"Write compare_fn({', '.join(expected)}), which returns whether the current result is better."
    if compare_fn is None:
        raise ValueError(f"`compare_fn` must not be None. {mend} Left out, the loss is compared.")
    if not callable(compare_fn):
        raise TypeError(f"`compare_fn` must be callable, given: {compare_fn!r}. {mend}")
    check_arguments(compare_fn, role="compare_fn", allowed=expected, required=expected)


def _checked_exports_to_keep(exports_to_keep: int | None) -> int | None:
    check_number("exports_to_keep", exports_to_keep, whole=True)
    if exports_to_keep is not None and exports_to_keep <= 0:
        raise ValueError(
            f"`exports_to_keep`, if provided, must be a positive number. Got {exports_to_keep}; None keeps all exports."
        )
    return exports_to_keep


def _remove_old_exports(export_path: str, exports_to_keep: int | None) -> None:
    """Leaves the newest exports: of the directories with a time of 10 digits as their name, those with the largest."""
    if exports_to_keep is None or not os.path.isdir(export_path):
        return
    with os.scandir(export_path) as entries:
        exports = sorted(entry.name for entry in entries if _VERSION.fullmatch(entry.name) and entry.is_dir())
    for name in exports[:-exports_to_keep]:
        try:
            shutil.rmtree(os.path.join(export_path, name))
        except OSError as error:
            _logger.warning("Can not delete the old export %s: %s", name, error)


def _read_record(export_path: str) -> dict[str, Any] | None:
    """The best result so far, or None."""
    path = os.path.join(export_path, _RECORD)
    try:
        with open(path, encoding="utf-8") as file:
            record = json.load(file, object_hook=_decode)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(
            f"{path} does not hold the best result of BestExporter ({error}). Delete it, and the next evaluation is the best."
        ) from error
    return dict(record)


def _write_record(export_path: str, result: Mapping[str, Any]) -> None:
    """Writes the best result so that the file is whole at any moment."""
    kept = {}
    for name, value in result.items():
        try:
            json.dumps(value, default=_encode)
        except (TypeError, ValueError):
            _logger.warning(
                "BestExporter cannot keep the metric %s, of type %s; compare_fn goes without it.", name, type(value)
            )
        else:
            kept[name] = value
    os.makedirs(export_path, exist_ok=True)
    path = os.path.join(export_path, _RECORD)
    with open(f"{path}.tmp", "w", encoding="utf-8") as file:
        json.dump(kept, file, default=_encode)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.tmp", path)


def _encode(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return {"__array__": value.tolist(), "dtype": str(value.dtype)}
    raise TypeError(f"not a number and not an array: {value!r}")


def _decode(value: dict[str, Any]) -> Any:
    return np.array(value["__array__"], value["dtype"]) if set(value) == {"__array__", "dtype"} else value
