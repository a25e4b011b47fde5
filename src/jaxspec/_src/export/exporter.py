"""Exporter: the base class of what exports a model after an evaluation."""

import abc
from typing import Any

from jaxspec._src.base.types import Metrics


class Exporter(abc.ABC):
    """Base class of exporters for `EvalSpec(exporters=...)`. `train_and_evaluate` calls `export` after each evaluation."""

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
