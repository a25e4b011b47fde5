"""Exported models: the outputs that `export_outputs` may hold."""

from .outputs import ClassificationOutput as ClassificationOutput
from .outputs import ExportOutput as ExportOutput
from .outputs import PredictOutput as PredictOutput
from .outputs import RegressionOutput as RegressionOutput
