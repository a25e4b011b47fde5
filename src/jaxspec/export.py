"""Exported models: the outputs that `export_outputs` may hold."""

from jaxspec._src.spec.export_outputs import ClassificationOutput as ClassificationOutput
from jaxspec._src.spec.export_outputs import ExportOutput as ExportOutput
from jaxspec._src.spec.export_outputs import PredictOutput as PredictOutput
from jaxspec._src.spec.export_outputs import RegressionOutput as RegressionOutput
